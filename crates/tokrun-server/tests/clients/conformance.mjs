// The official npm package against a tokrun server, as it comes: no adapter, no patched behaviour.
//
//     node conformance.mjs http://127.0.0.1:8080 MODEL EMBEDDING_MODEL [KEY]
//
// It is looked for where TOKRUN_CLIENTS_NODE points, a folder with `node_modules`. Each check is a function; all run, and
// the exit status is 1 if one failed.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";

const require = createRequire(path.join(process.env.TOKRUN_CLIENTS_NODE ?? process.cwd(), "client.js"));
const { OpenAI } = require("openai");

const [base, model, embedder, apiKey = "unused"] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: "Why is the sky blue?" }];
const ask = (extra = {}) => client.chat.completions.create({ model, messages, max_tokens: 16, temperature: 0, ...extra });

const weather = {
  type: "object",
  properties: { city: { type: "string", enum: ["Oslo", "Rome"] }, days: { type: "integer", minimum: 1, maximum: 9 } },
  required: ["city", "days"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", description: "Tells the weather.", parameters: weather } }];
const isWeather = ({ city, days }) => assert.ok(["Oslo", "Rome"].includes(city) && days >= 1 && days <= 9, `${city} ${days}`);

const checks = {
  async chat() {
    const answer = await ask();
    const { usage } = answer;
    assert.ok(["stop", "length"].includes(answer.choices[0].finish_reason));
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
    assert.equal(answer.tokrun.debited, usage.total_tokens);
    assert.ok(answer._request_id);
  },

  async stream() {
    const whole = await ask();
    let text = "";
    let usage = null;
    for await (const chunk of await ask({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  },

  async embeddings() {
    // The package asks for base64 by itself, and makes numbers of it.
    const answer = await client.embeddings.create({ model: embedder, input: ["one two three", "four"] });
    const numbers = await client.embeddings.create({ model: embedder, input: "one two three", encoding_format: "float" });
    const [first, again] = [answer.data[0].embedding, numbers.data[0].embedding];
    assert.equal(first.length, again.length);
    first.forEach((value, index) => assert.ok(Math.abs(value - again[index]) < 1e-6));
    assert.ok(answer.usage.prompt_tokens > 0 && answer.usage.prompt_tokens === answer.tokrun.debited);
    await assert.rejects(client.embeddings.create({ model, input: "one" }), (error) => error.code === "unsupported_model");
  },

  async tools() {
    const answer = await ask({ tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200 });
    const [choice] = answer.choices;
    assert.equal(choice.finish_reason, "tool_calls");
    const [call] = choice.message.tool_calls;
    isWeather(JSON.parse(call.function.arguments));
    const turns = [...messages, choice.message, { role: "tool", tool_call_id: call.id, content: "Rain." }];
    assert.ok((await ask({ messages: turns, tools })).choices[0].finish_reason);
  },

  async "tools in a stream"() {
    const tool_choice = { type: "function", function: { name: "weather" } };
    const stream = client.chat.completions.stream({ model, messages, tools, tool_choice, max_tokens: 200, temperature: 0 });
    let pieces = "";
    stream.on("tool_calls.function.arguments.delta", (event) => (pieces += event.arguments_delta));
    const final = await stream.finalChatCompletion();
    const [call] = final.choices[0].message.tool_calls;
    assert.equal(pieces, call.function.arguments);
    isWeather(JSON.parse(pieces));
  },

  async "structured output"() {
    const schema = { type: "object", properties: { is_sunny: { type: "boolean" } }, required: ["is_sunny"], additionalProperties: false };
    const response_format = { type: "json_schema", json_schema: { name: "weather", schema, strict: true } };
    const answer = await client.chat.completions.parse({ model, messages, response_format, max_tokens: 200, temperature: 0 });
    assert.equal(typeof answer.choices[0].message.parsed.is_sunny, "boolean");
  },

  async logprobs() {
    const { content } = (await ask({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
    assert.ok(content.every((token) => token.logprob <= 0 && token.top_logprobs.length === 2));
  },

  async responses() {
    const asked = { model, input: "Why is the sky blue?", max_output_tokens: 16, temperature: 0 };
    const answer = await client.responses.create(asked);
    let text = "";
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      text += event.type === "response.output_text.delta" ? event.delta : "";
    }
    assert.equal(text, answer.output_text);
    const functions = [{ type: "function", name: "weather", parameters: weather, strict: true }];
    const forced = await client.responses.create({ ...asked, tools: functions, tool_choice: "required", parallel_tool_calls: false, max_output_tokens: 200 });
    isWeather(JSON.parse(forced.output[0].arguments));
  },

  async models() {
    const names = [];
    for await (const entry of client.models.list()) names.push(entry.id);
    assert.ok(names.includes(model));
  },

  async errors() {
    await assert.rejects(ask({ model: "nothing" }), (error) => error.status === 404 && error.code === "model_not_found");
    await assert.rejects(ask({ temperature: 9 }), (error) => error.status === 400);
  },

  async cancellation() {
    const stream = await ask({ stream: true, max_tokens: 2000, ignore_eos: true });
    for await (const _ of stream) break;
    const controller = new AbortController();
    const asked = client.chat.completions.create({ model, messages, max_tokens: 2000, ignore_eos: true }, { signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    await assert.rejects(asked, (error) => error instanceof OpenAI.APIUserAbortError);
    assert.ok(await ask({ max_tokens: 2 }));
  },

  async retries() {
    const counts = [];
    const flaky = (url, options) => {
      counts.push(new Headers(options.headers).get("x-stainless-retry-count"));
      if (counts.length === 1) return Promise.resolve(new Response("{}", { status: 503, headers: { "retry-after-ms": "1" } }));
      return fetch(url, options);
    };
    const patient = new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 2, fetch: flaky });
    assert.ok((await patient.chat.completions.create({ model, messages, max_tokens: 2 })).choices);
    assert.deepEqual(counts, ["0", "1"]);
    await assert.rejects(patient.chat.completions.create({ model: "nothing", messages }), (error) => error.status === 404);
    assert.equal(counts.length, 3);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    console.log("ok", name);
  } catch (error) {
    failed += 1;
    console.log("FAILED", name, error);
  }
}
const { version } = JSON.parse(readFileSync(path.join(path.dirname(require.resolve("openai")), "package.json")));
console.log(`${Object.keys(checks).length - failed} of ${Object.keys(checks).length} passed: openai ${version}`);
process.exit(failed ? 1 : 0);
