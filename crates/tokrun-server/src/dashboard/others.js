// The team, and the machine.

import { h, fill, plot, table, figure, meter } from "./plot.js";
import { $, state, ask, say, doing, ms, soon, when, sum, card, tile, none } from "./server.js";

export async function team() {
  const members = await ask("GET", "/dashboard/team?days=28");
  const open = state.now.sees.machine ? await ask("GET", "/admin/v1/requests?open=true") : [];
  const spent = (member) => member.usage?.debited ?? 0;
  const depth = (member) => { let steps = 0; for (let at = member; (at = members.find((other) => other.wallet === at.parent)); ) steps += 1; return steps; };
  const ordered = [];
  const add = (parent) => members.filter((member) => (parent ? member.parent === parent.wallet : !members.some((other) => other.wallet === member.parent)))
    .forEach((member) => { ordered.push(member); add(member); });
  add(null);
  const most = Math.max(1, ...members.map(spent));
  const funds = ["finance", "admin"].includes(state.now.key.role);
  fill($("team"), h("h1", {}, state.now.sees.machine ? "Everybody" : `The team ${state.now.wallet.wallet}`), h("div", { class: "grid" },
    card("Four weeks", "", h("dl", { class: "tiles" }, tile("Wallets", figure(members.length)), tile("Left in them", figure(sum(members, (member) => Math.max(0, member.balance)), 0)),
      tile("Spent", figure(sum(members, spent), 0)), tile("Requests", figure(sum(members, (member) => member.usage?.requests ?? 0))))),
    open.length > 0 && card("Asked for", "", table("What was asked for", [
      { head: "When", cell: (one) => when(one.created) }, { head: "Wallet", cell: (one) => one.wallet }, { head: "Credits", number: true, cell: (one) => figure(one.amount) },
      { head: "For", name: true, cell: (one) => one.reason },
      { head: "", cell: (one) => funds && h("span", {}, answering(one, "approve", "Approve"), " ", answering(one, "deny", "Deny")) },
    ], open)),
    card("Wallets", "", table("Wallets", [
      { head: "Wallet", name: true, cell: (member) => { const link = h("a", { href: `#wallet=${encodeURIComponent(member.wallet)}` }, member.wallet); link.style.marginLeft = `${depth(member) * 1.1}rem`; return link; } },
      { head: "", cell: (member) => h("span", { class: member.frozen || member.closed ? "tag bad" : "tag" }, member.closed ? "closed" : member.frozen ? "frozen" : member.kind) },
      { head: "Left", number: true, cell: (member) => figure(member.balance, 0) },
      { head: "In flight", number: true, cell: (member) => (member.in_flight > 0 ? figure(member.in_flight, 0) : "") },
      { head: "Spent in four weeks", number: true, cell: (member) => h("span", {}, figure(spent(member), 0), meter(spent(member) / most)) },
      { head: "Requests", number: true, cell: (member) => figure(member.usage?.requests ?? 0) },
      { head: "First token p95", number: true, cell: (member) => ms(member.usage?.ttft_ms?.p95) },
      { head: "Lasts until", cell: (member) => (member.forecast ? (member.forecast.until ? soon(member.forecast.until) : "over a year") : "–") },
    ], ordered))));
}

const answering = (one, what, text) => h("button", { type: "button", class: `plain ${what === "deny" ? "alarm" : ""}`, "aria-label": `${text} ${figure(one.amount)} for ${one.wallet}`,
  onclick: doing(async () => { await ask("POST", `/admin/v1/requests/${one.id}/${what}`, {}); say(what === "deny" ? "Denied." : "Granted."); await team(); }) }, text);

// ---- The machine.

/** Rates from the counts of two moments. */
function rates(before, after) {
  const seconds = Math.max(0.001, (after.now_ms - before.now_ms) / 1000);
  const count = (of, name) => sum(of.models, (model) => model[name] ?? 0);
  const rate = (name) => Math.max(0, count(after, name) - count(before, name)) / seconds;
  const measured = after.models.some((model) => model.energy_joules !== null);
  return { output: rate("output_tokens"), prompt: rate("prompt_tokens"), running: count(after, "running"), waiting: count(after, "waiting"),
    kv: 100 * count(after, "kv_blocks_used") / Math.max(1, count(after, "kv_blocks")), watts: measured ? rate("energy_joules") : null };
}

export async function machine() {
  const seen = state.machine;
  seen.push(await ask("GET", "/dashboard/machine"));
  if (seen.length > 181) seen.shift();
  const now = seen.at(-1);
  const series = seen.slice(1).map((after, index) => rates(seen[Math.max(0, index - 2)], after));
  const last = series.at(-1) ?? rates(now, now);
  const labels = series.map((_, index) => (index === series.length - 1 ? "now" : `${series.length - 1 - index} s ago`));
  const small = (title, name, unit, kind = "area", digits = 0, counts = false) => card(title, "half", series.length < 2 ? none("A moment, please.") : plot({ title: `${title}, second by second`, summary: `Now ${figure(last[name], digits)} ${unit}.`,
    labels, unit, counts, height: 130, figures: false, format: (value) => figure(value, digits), series: [{ name: title, kind, values: series.map((point) => point[name]) }] }));
  const rows = now.models;
  fill($("machine"), h("h1", {}, "The machine"), h("div", { class: "grid" },
    now.ledger.bad && h("section", { class: "card" }, h("p", {}, `The ledger is marked bad and spends nothing: ${now.ledger.bad}`)),
    card("Now", "", h("dl", { class: "tiles" },
      tile("Output", figure(last.output, 0), "tokens/s"), tile("Prompts", figure(last.prompt, 0), "tokens/s"), tile("Running", figure(last.running), "at once"), tile("Queue", figure(last.waiting), "waiting"),
      tile("KV cache", figure(last.kv, 0), "%"), tile("Power of requests", last.watts === null ? "–" : figure(last.watts, 0), last.watts === null ? "not measured here" : "W"))),
    small("Output", "output", "tokens/s"), small("Batch", "running", "requests", "area", 0, true), small("KV cache in use", "kv", "%", "area", 1),
    last.watts === null ? small("Queue", "waiting", "requests", "area", 0, true) : small("Power of requests", "watts", "W"),
    card("Models", "", table("Models", [
      { head: "Model", name: true, cell: (row) => row.model }, { head: "Device", cell: (row) => row.device ?? h("span", { class: "quiet", title: row.failure ?? "" }, row.failure ? "failed to load" : row.state) },
      { head: "Running", number: true, cell: (row) => `${row.running} / ${row.sequences_max ?? "–"}` }, { head: "Waiting", number: true, cell: (row) => figure(row.waiting) },
      { head: "Places taken", number: true, cell: (row) => `${row.places_taken} / ${row.places}` },
      { head: "KV blocks", number: true, cell: (row) => `${figure(row.kv_blocks_used)} / ${figure(row.kv_blocks)}` },
      { head: "Gave way", number: true, cell: (row) => figure(row.preemptions) },
      { head: "Prompt tokens", number: true, cell: (row) => figure(row.prompt_tokens) }, { head: "Output tokens", number: true, cell: (row) => figure(row.output_tokens) },
      { head: "Energy", number: true, cell: (row) => (row.energy_joules === null ? "–" : `${figure(row.energy_joules, 0)} J`) },
    ], rows)),
    card("Ledger", "", h("dl", { class: "tiles" }, tile("Entries", figure(now.ledger.entries)), tile("Wallets", figure(now.ledger.wallets)), tile("Open requests", figure(now.ledger.open_requests)), tile("tokrun", now.version)))));
}
