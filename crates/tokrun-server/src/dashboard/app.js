// The dashboard: signing in and out, and going from view to view.

import { $, SECOND, Refused, state, ask, say, doing } from "./server.js";
import { showBalance, showDays, you } from "./wallet.js";
import { machine, team } from "./others.js";

const SESSION = "tokrun-session";
const timers = [];

function signedOut(message) {
  state.session = state.now = state.days = null;
  Object.assign(state, { spent: [], machine: [], viewed: null });
  sessionStorage.removeItem(SESSION);
  timers.splice(0).forEach(clearInterval);
  for (const view of ["you", "team", "machine"]) { $(view).hidden = true; $(view).replaceChildren(); }
  document.querySelector("nav").hidden = document.querySelector(".who").hidden = true;
  $("sign-in").hidden = false;
  if (message) say(message);
  $("secret").focus();
}

async function signIn(shown) {
  state.session = null;
  const { session } = await ask("POST", "/dashboard/session", shown);
  state.session = session;
  sessionStorage.setItem(SESSION, session);
  await start();
}

async function start() {
  await tick();
  $("sign-in").hidden = true;
  document.querySelector("nav").hidden = document.querySelector(".who").hidden = false;
  await go();
  const every = (seconds, work) => timers.push(setInterval(() => { if (!document.hidden && state.session) void work().catch(() => {}); }, seconds * SECOND));
  every(1, tick);
  every(2, async () => { if (state.viewed && !$("you").hidden) await lookAt(); });
  every(1, async () => { if (!$("machine").hidden) await machine(); });
  every(15, async () => { if (!$("team").hidden) await team(); });
  every(20, async () => { if (!$("you").hidden) await loadDays(true); });
}

/** Looks at the balance; nobody waits for an answer that takes longer than a second. */
async function tick() {
  if (tick.busy) return;
  tick.busy = true;
  try {
    state.now = await ask("GET", "/dashboard/now");
    state.spent.push({ at: Date.now(), balance: state.now.wallet.balance });
    if (state.spent.length > 180) state.spent.shift();
    $("who").textContent = `${state.now.wallet.wallet} · ${state.now.key.name}`;
    document.querySelector('nav [href="#team"]').hidden = !state.now.sees.team;
    document.querySelector('nav [href="#machine"]').hidden = !state.now.sees.machine;
    showBalance();
  } finally {
    tick.busy = false;
  }
}

/** Looks at the balance of somebody else. */
async function lookAt() {
  state.shown = await ask("GET", `/admin/v1/wallets/${encodeURIComponent(state.viewed)}`);
  showBalance();
}

/** Whether somebody is at something that would go away if it were drawn anew. */
const isBusy = () => $("you").querySelector("form :focus, figure :focus, details[open], summary:focus") !== null;

async function loadDays(again = false) {
  const name = state.viewed ?? state.now.wallet.wallet;
  const leads = ["team", "organisation"].includes(state.viewed ? state.shown?.kind : state.now.wallet.kind);
  const days = await ask("GET", `/dashboard/days?days=28&wallet=${encodeURIComponent(name)}${leads ? "&subtree=true" : ""}`);
  if (again && (isBusy() || JSON.stringify(days) === JSON.stringify(state.days))) return;
  state.days = days;
  showDays();
}

async function go() {
  if (!state.session || !state.now) return;
  const [view, wallet] = location.hash.slice(1).split("=");
  const name = { team: state.now.sees.team, machine: state.now.sees.machine }[view] ? view : "you";
  state.viewed = view === "wallet" && state.now.sees.team && wallet ? decodeURIComponent(wallet) : null;
  for (const id of ["you", "team", "machine"]) $(id).hidden = id !== name;
  const current = state.viewed ? "team" : name;
  document.querySelectorAll("nav a").forEach((link) => link.hash === `#${current}` ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current"));
  document.title = `${state.viewed ?? { you: "You", team: "Team", machine: "Machine" }[name]} · tokrun`;
  try {
    if (name === "team") return await team();
    if (name === "machine") return await machine();
    state.days = null;
    if (state.viewed) await lookAt();
    you();
    await loadDays();
  } catch (error) {
    if (error instanceof Refused) say(error.message);
  }
}

$("sign-in").querySelector("form").addEventListener("submit", doing(async () => {
  const key = $("secret").value.trim();
  await signIn({ key });
  $("secret").value = "";
}));
$("sign-out").addEventListener("click", doing(async () => {
  await ask("DELETE", "/dashboard/session").catch(() => {});
  signedOut("You are signed out.");
}));
addEventListener("hashchange", () => { void go(); $("main").focus(); });

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});

addEventListener("signed-out", ({ detail }) => signedOut(detail));

state.session = sessionStorage.getItem(SESSION);
const code = /^#link=([0-9a-f]+)$/.exec(location.hash)?.[1];
if (code) {
  // It works once, and should not stay in the address.
  window.history.replaceState(null, "", location.pathname);
  signIn({ link: code }).catch((error) => signedOut(error instanceof Refused ? error.message : "The server cannot be reached."));
} else if (state.session) {
  start().catch(() => state.session && signedOut("The server cannot be reached."));
} else {
  signedOut();
}
