// The dashboard in a headless Chromium: node dashboard.mjs URL FACTS, where FACTS has what the test made (JSON).
// Needs `playwright-core` and `axe-core` where NODE_PATH says, and a Chromium (CHROMIUM names another than `chromium`).
// With SCREENSHOTS=DIRECTORY it leaves pictures there, for somebody to look at; with DASHBOARD=DIRECTORY it takes the page's
// own files from there, so that nothing need be built to see a change.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";

const require = createRequire(`${process.env.NODE_PATH}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const [url, facts] = [process.argv[2], JSON.parse(process.argv[3])];
const pictures = process.env.SCREENSHOTS;
if (pictures) mkdirSync(pictures, { recursive: true });

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const said = [];

async function open(options = {}) {
  // axe is put into the page past its policy; the policy itself is asked about below.
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, bypassCSP: true, ...options });
  const page = await context.newPage();
  if (process.env.DASHBOARD) {
    await page.route(/\/dashboard\/\w+\.(js|css)$/, (route) => route.fulfill({ path: process.env.DASHBOARD + new URL(route.request().url()).pathname.replace("/dashboard", "") }));
  }
  page.on("console", (message) => message.type() === "error" && !message.text().includes("401") && said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));
  return page;
}

async function look(page, name) {
  if (pictures) {
    await page.waitForTimeout(250);
    await page.screenshot({ path: `${pictures}/${name}.png`, fullPage: true });
  }
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.ok(wide <= 0, `${name} is ${wide} px too wide`);
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const bad = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(bad.map(({ id, nodes }) => `${name}: ${id}: ${nodes[0].html} ${nodes[0].failureSummary}`), []);
}

async function signIn(page, key) {
  await page.goto(url);
  await page.getByLabel("Access key").fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { level: 1, name: "Hello" }).waitFor();
}

const balance = async (page) => Number((await page.locator("#balance").textContent()).replaceAll(",", ""));

async function until(what, holds) {
  for (let tries = 0; tries < 150; tries += 1) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.fail(`waited too long until ${what}`);
}

/** Streams of somebody else's program, one after the other; returns how to end them. */
function stream(key) {
  const controller = new AbortController();
  const body = JSON.stringify({ model: facts.model, max_tokens: 16000, stream: true, ignore_eos: true, messages: [{ role: "user", content: "The light" }] });
  const reading = (async () => {
    while (!controller.signal.aborted) {
      const response = await fetch(`${url}/v1/chat/completions`, { method: "POST", body, signal: controller.signal, headers: { authorization: `Bearer ${key}`, "content-type": "application/json" } });
      assert.equal(response.status, 200);
      for await (const _ of response.body);
    }
  })().catch((error) => error.name === "AbortError" || said.push(String(error)));
  return async () => { controller.abort(); await reading; };
}

try {
  const page = await open();
  await page.goto(url);
  await page.getByLabel("Access key").fill("tkr-wrong");
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("Incorrect API key").waitFor();
  await look(page, "sign-in");

  // A person: the balance falls while a stream runs; forecast and plots.
  await signIn(page, facts.ada);
  await page.getByText("Lasts until").first().waitFor();
  const before = await balance(page);
  const end = stream(facts.ada);
  await until("the balance falls", async () => (await balance(page)) < before);
  const between = await balance(page);
  await until("it falls on", async () => (await balance(page)) < between);
  if (pictures) await page.waitForTimeout(5000);
  await look(page, "you-light");
  await end();
  await page.getByRole("img", { name: /^Credits left by day.*Lasts until/ }).focus();
  await page.keyboard.press("ArrowLeft");
  await page.getByText(/· left [\d,]+/).first().waitFor();

  // Keys: one is created, works, is revoked, and works no more.
  await page.getByLabel("Name of a new key").fill("from the page");
  await page.getByRole("button", { name: "Create key" }).click();
  const secret = await page.locator("dialog .secret").textContent();
  assert.match(secret, /^tkr-/);
  await look(page, "new-key");
  await page.getByRole("button", { name: "Done" }).click();
  const models = (key) => fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${key}` } }).then(({ status }) => status);
  assert.equal(await models(secret), 200);
  await page.getByRole("button", { name: "Revoke from the page" }).click();
  await page.locator("dialog").getByRole("button", { name: "Revoke" }).click();
  await page.getByText("from the page is revoked.").waitFor();
  assert.equal(await models(secret), 401);

  // Others' views are not for a member, whatever they ask for.
  assert.equal(await page.getByRole("link", { name: "Machine" }).isVisible(), false);
  const session = await page.evaluate(() => sessionStorage.getItem("tokrun-session"));
  for (const path of ["/dashboard/machine", "/admin/v1/wallets", "/dashboard/days?wallet=tools"]) {
    const { status } = await fetch(url + path, { headers: { authorization: `Bearer ${session}` } });
    assert.equal(status, 403, path);
  }
  // It lives through a reload, and ends with the button.
  await page.reload();
  await page.getByRole("heading", { level: 1, name: "Hello" }).waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Access key").waitFor();
  assert.equal((await fetch(`${url}/dashboard/now`, { headers: { authorization: `Bearer ${session}` } })).status, 401);

  // A phone in the dark.
  const phone = await open({ viewport: { width: 390, height: 844 }, colorScheme: "dark", deviceScaleFactor: 2, hasTouch: true });
  await signIn(phone, facts.ada);
  await phone.getByText("Lasts until").first().waitFor();
  await look(phone, "you-phone-dark");

  // An admin: everybody, one of them, and the machine; in the dark.
  const admin = await open({ colorScheme: "dark" });
  await signIn(admin, facts.boss);
  const ends = [stream(facts.ada), stream(facts.ada), stream(facts.bob)];
  await admin.getByRole("link", { name: "Team" }).click();
  await admin.getByRole("heading", { name: "Everybody" }).waitFor();
  await look(admin, "team-dark");
  await admin.getByRole("button", { name: /^Approve/ }).click();
  await admin.getByText("Granted.").waitFor();
  await admin.getByRole("link", { name: "bob" }).click();
  await admin.getByText("Credits left of bob").waitFor();
  await admin.getByRole("link", { name: "Machine" }).click();
  await until("there are rates", async () => /[1-9]/.test(await admin.locator("#machine dd").first().textContent()));
  if (pictures) await admin.waitForTimeout(6000);
  await look(admin, "machine-dark");
  await admin.emulateMedia({ colorScheme: "light" });
  await look(admin, "machine-light");
  await Promise.all(ends.map((one) => one()));

  // A lead sees the team. A link signs in, once.
  const lead = await open();
  await lead.goto(`${url}/#link=${facts.link}`);
  await lead.getByRole("heading", { level: 1, name: "Hello, tools" }).waitFor();
  assert.equal(await lead.evaluate(() => location.hash), "");
  await lead.getByRole("link", { name: "Team" }).click();
  await lead.getByRole("heading", { name: "The team tools" }).waitFor();
  assert.equal(await lead.getByRole("link", { name: "bob" }).count(), 0);
  await lead.getByRole("link", { name: "ada" }).waitFor();
  await look(lead, "team-light");
  const late = await open();
  await late.goto(`${url}/#link=${facts.link}`);
  await late.getByText("This link was used, or is too old.").waitFor();

  // The page runs nothing but its own, and asks nobody else.
  const strict = await open({ bypassCSP: false });
  const asked = new Set();
  strict.on("request", (request) => request.url().startsWith("data:") || asked.add(new URL(request.url()).origin));
  const answer = await strict.goto(url);
  assert.match(answer.headers()["content-security-policy"], /default-src 'none'; script-src 'self'; style-src 'self'/);
  await signIn(strict, facts.ada);
  assert.deepEqual([...asked], [new URL(url).origin]);
  assert.deepEqual(said, []);
} finally {
  await browser.close();
}
console.log("the dashboard is as it should be");
