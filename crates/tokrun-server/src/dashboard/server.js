// What the views have in common: asking the server, saying what came of it, dates and words.
//
// The session's secret is in this tab's own storage alone, and goes along with each request as a program's key does
// (sessions.rs says why it is no cookie).

import { h, figure } from "./plot.js";

export const $ = (id) => document.getElementById(id);
export const SECOND = 1000;

/** What is known: the session, what the server said last, and whose wallet is looked at (`null`: one's own). */
export const state = { session: null, now: null, days: null, viewed: null, shown: null, spent: [], machine: [] };

export class Refused extends Error {}

export async function ask(method, path, body) {
  const headers = { "content-type": "application/json" };
  if (state.session) headers.authorization = `Bearer ${state.session}`;
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store", credentials: "omit" });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401 && state.session) dispatchEvent(new CustomEvent("signed-out", { detail: "You are signed out: the session has ended." }));
  throw new Refused(answer.error?.message ?? `The server answers ${response.status}.`);
}

let hush;
export function say(text) {
  $("said").textContent = text;
  clearTimeout(hush);
  hush = setTimeout(() => { $("said").textContent = ""; }, 6 * SECOND);
}

/** Runs what a person asked for; says what went wrong. */
export const doing = (work) => async (event) => {
  event.preventDefault();
  try {
    await work(event);
  } catch (error) {
    say(error instanceof Refused ? error.message : "The server cannot be reached.");
  }
};

// ---- Dates and words.

export const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short" });
export const whole = new Intl.DateTimeFormat("en", { day: "numeric", month: "long", year: "numeric" });
const further = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });
/** A day, with its year if that is not this one. */
export const soon = (text) => { const at = new Date(text); return (at.getFullYear() === new Date().getFullYear() ? day : further).format(at); };
const moment = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });
/** The date of a calendar, whatever zone the browser is in. */
export const date = (text) => { const [year, month, of] = text.split("-").map(Number); return new Date(year, month - 1, of); };
export const ms = (value) => (value === null || value === undefined ? "–" : value >= 10000 ? `${figure(value / 1000, 1)} s` : `${figure(value, value < 10 ? 1 : 0)} ms`);
export const when = (text) => (text ? moment.format(new Date(text)) : "never");
export const sum = (rows, of) => rows.reduce((total, row) => total + of(row), 0);
export const plural = (count, what) => `${figure(count)} ${what}${count === 1 ? "" : "s"}`;

export function lasts(forecast) {
  if (!forecast) return "How long it lasts can be told after three days of spending.";
  const pace = `${figure(forecast.per_day, 0)} a day over the last ${plural(forecast.days_seen, "day")}`;
  return forecast.until ? `Lasts until ${whole.format(new Date(forecast.until))} at this pace: ${pace}.` : `Lasts for more than a year at this pace: ${pace}.`;
}

export const card = (title, size, ...children) => {
  const id = `t${(card.count = (card.count ?? 0) + 1)}`;
  return h("section", { class: `card ${size}`, "aria-labelledby": id }, h("h2", { id }, title), ...children);
};
export const tile = (name, value, note) => h("div", {}, h("dt", {}, name), h("dd", {}, value, note && h("small", {}, ` ${note}`)));
export const none = (text) => h("p", { class: "quiet" }, text);
