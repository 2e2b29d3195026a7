// A wallet: its balance second by second, four weeks of it, its keys, and asking for more.

import { h, fill, plot, table, figure, meter } from "./plot.js";
import { $, SECOND, state, ask, say, doing, day, whole, date, ms, soon, when, sum, lasts, card, tile, none } from "./server.js";

export function you() {
  const view = $("you");
  const own = state.viewed === null;
  const balance = h("p", { class: "balance", id: "balance" });
  const flow = h("p", { id: "flow" });
  const hero = h("section", { class: "card hero", "aria-label": "Balance" },
    h("p", { class: "quiet" }, own ? "Credits left" : `Credits left of ${state.viewed}`), balance, flow, h("p", { id: "lasts" }));
  const live = own && card("Live", "third", h("div", { id: "live" }));
  if (own) hero.classList.add("two-thirds");
  fill(view, 
    h("h1", {}, own ? `Hello, ${state.now.wallet.wallet}` : state.viewed),
    own ? "" : h("p", {}, h("a", { href: "#team" }, "Back to the team")),
    h("div", { class: "grid" }, hero, live, h("div", { class: "grid all", id: "history" })),
  );
  showBalance();
  showDays();
  if (own) void showKeys();
}

export function showBalance() {
  if (!$("balance") || !state.now) return;
  const own = state.viewed === null;
  const wallet = own ? state.now.wallet : state.shown;
  if (!wallet) return;
  $("balance").textContent = figure(wallet.balance, 2);
  $("balance").classList.toggle("low", wallet.balance <= 0);
  const parts = [];
  if (wallet.closed) parts.push("closed");
  else if (wallet.frozen) parts.push("frozen: it spends nothing until somebody thaws it");
  if (wallet.in_flight > 0) parts.push(h("span", { class: "pulse" }, `${figure(wallet.in_flight, 2)} in flight`));
  if (wallet.drawable > 0) parts.push(`${figure(wallet.drawable, 2)} more from pools and overdrafts`);
  fill($("flow"), ...parts.flatMap((part, index) => (index ? [" · ", part] : [part])));
  if (own && $("live")) showLive();
}

/** What the balance did in the last two minutes, seen second by second. */
function showLive() {
  const seen = state.spent;
  const first = seen.find((point) => point.at > Date.now() - 60 * SECOND) ?? seen[0];
  const gone = first ? first.balance - seen.at(-1).balance : 0;
  const points = seen.slice(-90);
  const lowest = Math.min(...points.map((point) => point.balance));
  const text = gone > 0 ? `${figure(gone, 2)} spent in the last minute` : "Nothing is being spent.";
  const shape = [text, points.length, points[0].balance, points.at(-1).balance].join();
  if ($("live").dataset.shape === shape) return;
  $("live").dataset.shape = shape;
  if (points.every((point) => point.balance === points[0].balance)) return fill($("live"), none(text));
  fill($("live"), plot({
    title: "Balance in the last 90 seconds", summary: text, height: 96, figures: false, bare: true,
    labels: points.map((point, index) => (index === points.length - 1 ? "now" : `${points.length - 1 - index} s ago`)),
    series: [{ name: "above the lowest", kind: "area", values: points.map((point) => point.balance - lowest) }],
    format: (value) => `${figure(value + lowest, 2)} left`,
  }), none(text));
}

export function showDays() {
  const data = state.days;
  if (!data || !$("history")) return;
  $("lasts").textContent = lasts(data.forecast);
  const used = new Map(data.by_day.map((row) => [row.day, row]));
  const of = (pick) => data.days.map(({ date: key }) => { const row = used.get(key); return row ? pick(row) : null; });
  const labels = data.days.map(({ date: key }) => day.format(date(key)));
  const total = (name) => sum(data.by_day, (row) => row[name]);
  const latest = data.by_model.length === 1 ? data.by_model[0] : null;
  const spent = sum(data.days, (row) => row.spent);
  fill($("history"), 
    card("Burn-down", "", burnDown(data, labels)),
    card("Last four weeks", "", h("dl", { class: "tiles" },
      tile("Spent", figure(spent, 0), "credits"), tile("Requests", figure(total("requests"))),
      tile("Prompt tokens", figure(total("prompt_tokens")), `${figure(100 * total("cached_tokens") / Math.max(1, total("prompt_tokens")), 0)} % cached`),
      tile("Output tokens", figure(total("completion_tokens"))),
      latest && tile("First token, p95", ms(latest.ttft_ms?.p95)),
      latest && tile("Between tokens, p95", ms(latest.itl_ms?.p95)))),
    card("Spent a day", "half", plot({ title: "Credits spent a day", summary: `${figure(spent, 0)} in four weeks.`, labels, unit: "credits",
      series: [{ name: "spent", kind: "bars", values: data.days.map((row) => row.spent) }] })),
    card("Requests a day", "half", plot({ title: "Requests a day", summary: `${figure(total("requests"))} in four weeks.`, labels, counts: true,
      series: [{ name: "requests", kind: "bars", values: of((row) => row.requests).map((count) => count ?? 0) }] })),
    card("Until the first token", "half", plot({ title: "Time to the first token by day", summary: percentiles(data.by_day, "ttft_ms"), labels, format: ms,
      series: [{ name: "p50", kind: "line", values: of((row) => row.ttft_ms?.p50) }, { name: "p95", kind: "line", values: of((row) => row.ttft_ms?.p95) }] })),
    card("Speed of an answer", "half", plot({ title: "Output tokens a second by day", summary: "Of each answer, after its first token.", labels, unit: "tokens/s",
      format: (value) => figure(value, 1), series: [{ name: "tokens/s", kind: "line", values: of((row) => row.decode_tokens_per_s) }] })),
    card("By model", "half", usageTable("model", data.by_model)),
    card("By key", "half", usageTable("key", data.by_key)),
    card("Grants", "half", grants()),
    state.viewed === null && h("section", { class: "card half", id: "asks", "aria-label": "More" }),
    state.viewed === null && h("section", { class: "card", id: "keys", "aria-label": "Keys" }),
    card("Last requests", "", data.requests.length ? table("Last requests", [
      { head: "When", cell: (row) => when(row.ended) },
      data.subtree && { head: "Wallet", cell: (row) => row.wallet },
      { head: "Model", name: true, cell: (row) => row.model },
      { head: "Key", name: true, cell: (row) => row.key },
      { head: "Prompt", number: true, cell: (row) => figure(row.prompt_tokens) },
      { head: "Output", number: true, cell: (row) => figure(row.output_tokens) },
      { head: "Credits", number: true, cell: (row) => figure(row.debited) },
      { head: "First token", number: true, cell: (row) => ms(row.ttft_ms) },
      { head: "Tokens/s", number: true, cell: (row) => figure(row.decode_tokens_per_s, 0) },
      { head: "Ended", cell: (row) => row.finish_reason },
    ].filter(Boolean), data.requests) : none("Nothing was asked yet.")),
  );
  if (state.viewed === null) void showKeys();
}

const percentiles = (rows, name) => {
  const last = rows.findLast((row) => row[name]);
  return last ? `On ${day.format(date(last.day))} half within ${ms(last[name].p50)}, 95 % within ${ms(last[name].p95)}.` : "Nothing was measured yet.";
};

/** What was left each day, and what will be at the pace so far. */
function burnDown(data, labels) {
  const left = data.days.map((row) => row.left);
  const today = left.length - 1;
  const forecast = data.forecast;
  const until = forecast?.until ? (new Date(forecast.until) - Date.now()) / 864e5 : Infinity;
  const ahead = forecast ? Math.max(7, Math.min(28, Math.ceil(until) + 2)) : 0;
  const end = Math.min(until, ahead);
  const rest = Math.max(0, left[today]);
  const at = (offset) => (until <= ahead ? rest * Math.max(0, 1 - offset / Math.max(end, 1e-9)) : Math.max(0, rest - forecast.per_day * offset));
  const coming = Array.from({ length: ahead }, (_, index) => day.format(new Date(Date.now() + (index + 1) * 864e5)));
  const series = [{ name: "left", kind: "area", values: [...left, ...coming.map(() => null)] }];
  if (forecast) series.push({ name: "at this pace", kind: "dashed", values: [...left.map((_, index) => (index === today ? rest : null)), ...coming.map((_, index) => at(index + 1))] });
  return plot({ title: "Credits left by day", labels: [...labels, ...coming], series, now: forecast ? today : null,
    summary: `From ${figure(left[0], 0)} on ${labels[0]} to ${figure(left[today], 0)} today. ${lasts(forecast)}`, format: (value) => figure(value, 0), height: 240 });
}

const usageTable = (name, rows) => rows.length === 0 ? none("Nothing yet.") : table(`Usage by ${name}`, [
  { head: name === "key" ? "Key" : "Model", name: true, cell: (row) => row[name] || "without a key" },
  { head: "Requests", number: true, cell: (row) => figure(row.requests) },
  { head: "Credits", number: true, cell: (row) => figure(row.debited, 0) },
  { head: "First token p50 / p95", number: true, cell: (row) => `${ms(row.ttft_ms?.p50)} / ${ms(row.ttft_ms?.p95)}` },
  { head: "Tokens/s", number: true, cell: (row) => figure(row.decode_tokens_per_s, 0) },
], rows);

function grants() {
  const wallet = state.viewed === null ? state.now.wallet : state.shown;
  const live = (wallet?.grants ?? []).filter((grant) => ["live", "pending"].includes(grant.state));
  const coming = (wallet?.recurring ?? []).map((grant) => h("p", {}, `${figure(grant.amount)} every ${grant.every}, next on ${whole.format(new Date(grant.next))}`));
  if (live.length + coming.length === 0) return none("Nothing is granted now.");
  return h("div", {}, ...coming, live.length > 0 && table("Grants, in the order in which they are spent", [
    { head: "Grant", name: true, cell: (grant) => h("span", {}, grant.memo || grant.kind, grant.models ? h("span", { class: "quiet" }, ` for ${grant.models}`) : "", meter(grant.remaining / grant.amount)) },
    { head: "Left", number: true, cell: (grant) => figure(grant.remaining) },
    { head: "Of", number: true, cell: (grant) => figure(grant.amount) },
    { head: "Until", cell: (grant) => (grant.expires ? soon(grant.expires) : "open") },
  ], live));
}

// ---- Keys, and asking for more.

async function showKeys() {
  const wallet = encodeURIComponent(state.now.wallet.wallet);
  const [keys, asks] = await Promise.all([ask("GET", `/admin/v1/keys?wallet=${wallet}`), ask("GET", `/admin/v1/requests?wallet=${wallet}`)]).catch(() => [null, null]);
  if (!keys || !$("keys")) return;
  const may = state.now.key.role !== "auditor";
  if ($("keys").contains(document.activeElement) && document.activeElement.matches("input, select")) return;
  fill($("keys"), h("h2", {}, "Keys"),
    table("Keys", [
      { head: "Name", name: true, cell: (key) => h("span", {}, key.name, key.id === state.now.key.id && h("span", { class: "quiet" }, " (this one)")) },
      { head: "For", cell: (key) => [key.models ?? "all models", key.project && `in ${key.project}`].filter(Boolean).join(" ") },
      { head: "Role", cell: (key) => key.role },
      { head: "Created", cell: (key) => soon(key.created) },
      { head: "Expires", cell: (key) => (key.expires ? soon(key.expires) : "never") },
      { head: "", cell: (key) => (key.state === "valid" && may ? h("button", { class: "plain alarm", type: "button", "aria-label": `Revoke ${key.name}`, onclick: () => revoke(key) }, "Revoke") : h("span", { class: "tag" }, key.state)) },
    ], keys.toSorted((one, other) => (one.state === "valid" ? 0 : 1) - (other.state === "valid" ? 0 : 1))),
    may && newKey());
  if ($("asks")) fill($("asks"), h("h2", {}, "More"), ...asking(asks, may));
}

function newKey() {
  const name = h("input", { id: "key-name", required: true, maxlength: "128", autocomplete: "off", placeholder: "laptop" });
  const days = h("select", { id: "key-days" }, [[30, "30 days"], [90, "90 days"], [365, "a year"], ["", "never"]].map(([value, text]) => h("option", { value, selected: value === 90 }, text)));
  const models = h("input", { id: "key-models", autocomplete: "off", placeholder: "all" });
  return h("form", { class: "row", onsubmit: doing(async () => {
    const expires = days.value ? new Date(Date.now() + days.value * 864e5).toISOString() : undefined;
    const created = await ask("POST", "/admin/v1/keys", { name: name.value, models: models.value || undefined, expires });
    await dialog(`The key ${created.name}`, [h("p", {}, "Shown this once, and kept nowhere:"), h("code", { class: "secret", tabindex: "0" }, created.secret)],
      [h("button", { type: "button", onclick: () => navigator.clipboard?.writeText(created.secret).then(() => say("Copied.")) }, "Copy")], "Done");
    name.value = "";
    document.activeElement?.blur();
    await showKeys();
  }) }, h("div", {}, h("label", { for: "key-name" }, "Name of a new key"), name), h("div", {}, h("label", { for: "key-days" }, "Expires after"), days),
  h("div", {}, h("label", { for: "key-models" }, "Only for models"), models), h("button", { type: "submit" }, "Create key"));
}

async function revoke(key) {
  const own = key.id === state.now.key.id ? " You are signed in with it, and will be signed out." : "";
  const sure = await dialog(`Revoke ${key.name}?`, [h("p", {}, `Whatever uses it is refused from now on, for good.${own}`)], [], "Revoke", true);
  if (!sure) return;
  await doing(async () => {
    await ask("DELETE", `/admin/v1/keys/${encodeURIComponent(key.id)}`);
    say(`${key.name} is revoked.`);
    await showKeys();
  })(new Event("revoke"));
}

function asking(asks, may) {
  const amount = h("input", { id: "ask-amount", type: "number", min: "1", step: "any", required: true });
  const reason = h("input", { id: "ask-reason", maxlength: "1000", autocomplete: "off" });
  const form = h("form", { class: "row", onsubmit: doing(async () => {
    await ask("POST", "/admin/v1/requests", { amount: amount.value, reason: reason.value || undefined });
    say("Asked. Whoever may grant it hears of it.");
    document.activeElement?.blur();
    await showKeys();
  }) }, h("div", {}, h("label", { for: "ask-amount" }, "Credits"), amount), h("div", {}, h("label", { for: "ask-reason" }, "What for"), reason), h("button", { type: "submit" }, "Ask"));
  const known = asks.length > 0 && table("What you asked for", [
    { head: "When", cell: (one) => soon(one.created) }, { head: "Credits", number: true, cell: (one) => figure(one.amount) },
    { head: "For", name: true, cell: (one) => one.reason }, { head: "", cell: (one) => h("span", { class: "tag" }, one.state) },
  ], asks.toReversed().slice(0, 8));
  return [known || none("Ask here when it will not last."), may && form].filter(Boolean);
}

/** Asks or tells something; resolves to whether it was agreed to. */
function dialog(title, content, extra, yes, alarming = false) {
  return new Promise((resolve) => {
    const close = (answer) => () => { $("dialog").close(); resolve(answer); };
    fill($("dialog"), h("h2", { id: "dialog-title" }, title), ...content, h("div", { class: "row" },
      h("button", { type: "submit", class: alarming && "alarm", onclick: close(true) }, yes), ...extra, alarming && h("button", { type: "button", onclick: close(false) }, "Keep it")));
    $("dialog").oncancel = () => resolve(false);
    $("dialog").showModal();
  });
}
