"""The official Python packages against a tokrun server, as they come: no adapter, no patched behaviour.

    python conformance.py http://127.0.0.1:8080 MODEL EMBEDDING_MODEL [KEY]

Each check is a function; all run, and the exit status is 1 if one failed.
"""

import asyncio
import http.server
import json
import sys
import threading
import traceback
import urllib.error
import urllib.request

import anthropic
import openai
from pydantic import BaseModel

BASE, MODEL, EMBEDDER = sys.argv[1:4]
KEY = sys.argv[4] if len(sys.argv) > 4 else "unused"
ASK = [{"role": "user", "content": "Why is the sky blue?"}]

client = openai.OpenAI(base_url=BASE + "/v1", api_key=KEY, max_retries=0)
claude = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0)


def chat(**extra):
    arguments = dict(model=MODEL, messages=ASK, max_tokens=16, temperature=0) | extra
    return client.chat.completions.create(**arguments)


def same_total(usage):
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage


def openai_chat():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert 0 < answer.usage.completion_tokens <= 16
    same_total(answer.usage)
    assert answer.model_extra["tokrun"]["debited"] == answer.usage.total_tokens
    assert answer._request_id and answer.id.startswith("chatcmpl-")


def openai_chat_raw_headers():
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=4)
    assert float(raw.headers["x-tokrun-debited"]) == raw.parse().usage.total_tokens
    assert "x-tokrun-balance" in raw.headers


def openai_chat_stream():
    whole = chat()
    text, usage, finish = "", None, None
    for chunk in chat(stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        else:
            usage = chunk.usage
            assert chunk.model_extra["tokrun"]["debited"] == usage.total_tokens
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens
    same_total(usage)


def openai_chat_stream_helper():
    whole = chat(max_tokens=8)
    text, kinds = "", set()
    try:
        with client.chat.completions.stream(model=MODEL, messages=ASK, max_completion_tokens=8, temperature=0) as stream:
            for event in stream:
                kinds.add(event.type)
                text += event.delta if event.type == "content.delta" else ""
            stream.get_final_completion()
    except openai.LengthFinishReasonError:
        # That is how the package tells an end by length.
        assert whole.choices[0].finish_reason == "length"
    assert "chunk" in kinds and text == whole.choices[0].message.content


def openai_several_answers():
    answer = chat(n=3, temperature=1.0, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    again = chat(n=3, temperature=1.0, seed=5)
    assert [c.message.content for c in answer.choices] == [c.message.content for c in again.choices]


def openai_logprobs():
    answer = chat(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in content)
    assert bytes(b for token in content for b in token.bytes).decode(errors="replace") == answer.choices[0].message.content


def openai_logit_bias_and_stop():
    first = chat(logprobs=True, max_tokens=4).choices[0].logprobs.content
    if first:
        tokens = client.post("/tokenize".replace("/", BASE + "/", 1), body={"prompt": first[0].token}, cast_to=object)
        banned = chat(max_tokens=4, logit_bias={str(tokens["tokens"][-1]): -100}, logprobs=True)
        assert not banned.choices[0].logprobs.content or banned.choices[0].logprobs.content[0].token != first[0].token
    text = chat(max_tokens=40).choices[0].message.content
    if len(text) > 5:
        stopped = chat(max_tokens=40, stop=[text[3:5]])
        assert stopped.choices[0].finish_reason == "stop" and text[3:5] not in stopped.choices[0].message.content


def openai_json_object():
    answer = chat(response_format={"type": "json_object"}, max_tokens=400, temperature=0.2, seed=1)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


class Weather(BaseModel):
    is_sunny: bool


def openai_structured_output():
    parsed = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Weather, temperature=0, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, Weather)


def openai_completions():
    answer = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, temperature=0, logprobs=2)
    assert answer.object == "text_completion" and answer.usage.completion_tokens <= 8
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.text_offset)
    pieces = client.completions.create(model=MODEL, prompt="Once upon", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == answer.choices[0].text
    two = client.completions.create(model=MODEL, prompt=["Once", "upon"], max_tokens=2)
    assert len(two.choices) == 2


def openai_embeddings():
    # The package asks for base64 by itself, and makes numbers of it.
    answer = client.embeddings.create(model=EMBEDDER, input=["one two three", "four"])
    assert [entry.index for entry in answer.data] == [0, 1] and answer.model == EMBEDDER
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == answer.model_extra["tokrun"]["debited"] > 0
    numbers = client.embeddings.create(model=EMBEDDER, input="one two three", encoding_format="float")
    first, again = answer.data[0].embedding, numbers.data[0].embedding
    assert isinstance(again[0], float) and max(abs(a - b) for a, b in zip(first, again, strict=True)) < 1e-6
    assert abs(sum(value * value for value in first) - 1) < 1e-5
    tokens = client.embeddings.create(model=EMBEDDER, input=[5, 6, 7], dimensions=8)
    assert tokens.usage.prompt_tokens == 3 and len(tokens.data[0].embedding) == 8
    raises(openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input="one"), "unsupported_model")
    raises(openai.BadRequestError, lambda: client.embeddings.create(model=EMBEDDER, input="one " * 100), "context_length_exceeded")
    raises(openai.BadRequestError, lambda: client.embeddings.create(model=EMBEDDER, input="one", dimensions=7))


def openai_responses():
    answer = client.responses.create(model=MODEL, input="Why is the sky blue?", max_output_tokens=16, temperature=0)
    assert answer.status in ("completed", "incomplete")
    assert answer.output_text == chat().choices[0].message.content
    with client.responses.stream(model=MODEL, input=ASK, max_output_tokens=16, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response() if answer.status == "completed" else None
    assert text == answer.output_text
    assert final is None or final.usage.total_tokens == final.usage.input_tokens + final.usage.output_tokens


def openai_responses_structured():
    answer = client.responses.parse(
        model=MODEL, input="Is it sunny?", text_format=Weather, max_output_tokens=200, temperature=0
    )
    assert isinstance(answer.output_parsed, Weather)


WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": WEATHER}}


def is_weather(arguments):
    assert arguments["city"] in ("Oslo", "Rome") and 1 <= arguments["days"] <= 9, arguments


def openai_tools():
    answer = chat(tools=[FUNCTION], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1, choice
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.function.name == "weather"
    is_weather(json.loads(call.function.arguments))
    turns = ASK + [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    assert chat(messages=turns, tools=[FUNCTION]).choices[0].finish_reason
    named = {"type": "function", "function": {"name": "weather"}}
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=[FUNCTION], tool_choice=named, max_tokens=200, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds, kinds
    assert final.finish_reason == "tool_calls"
    is_weather(json.loads(final.message.tool_calls[0].function.arguments))


def openai_responses_tools():
    function = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    asked = dict(model=MODEL, tools=[function], max_output_tokens=200, temperature=0)
    answer = client.responses.create(input="Oslo?", tool_choice="required", parallel_tool_calls=False, **asked)
    call = answer.output[0]
    assert answer.status == "completed" and call.type == "function_call" and call.name == "weather", answer
    is_weather(json.loads(call.arguments))
    turns = [{"role": "user", "content": "Oslo?"}, call, {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}]
    assert client.responses.create(input=turns, **(asked | {"max_output_tokens": 16})).output
    with client.responses.stream(input="Oslo?", tool_choice={"type": "function", "name": "weather"}, **asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response().output[0]
    assert "response.function_call_arguments.delta" in kinds and "response.function_call_arguments.done" in kinds, kinds
    is_weather(json.loads(final.arguments))


class Flaky(http.server.BaseHTTPRequestHandler):
    """Refuses the first request it gets, and passes the others on."""

    asked = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        Flaky.asked += 1
        status, content, headers = 503, b"{}", {"retry-after-ms": "1"}
        if Flaky.asked > 1:
            try:
                passed = urllib.request.Request(BASE + self.path, body, {"content-type": "application/json", "x-api-key": KEY})
                with urllib.request.urlopen(passed) as answer:
                    status, content, headers = answer.status, answer.read(), {}
            except urllib.error.HTTPError as error:
                status, content, headers = error.code, error.read(), {}
        self.send_response(status)
        for name, value in ({"content-type": "application/json", "content-length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def flaky(ask):
    """Asks through a server that refuses once: the packages try again, but not where that is no use."""
    Flaky.asked = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    ask(base, MODEL)
    assert Flaky.asked == 2, Flaky.asked
    raises((openai.NotFoundError, anthropic.NotFoundError), lambda: ask(base, "nothing"))
    assert Flaky.asked == 3, Flaky.asked
    server.shutdown()


def openai_retries():
    def ask(base, model):
        patient = openai.OpenAI(base_url=base + "/v1", api_key=KEY, max_retries=2)
        assert patient.chat.completions.create(model=model, messages=ASK, max_tokens=2).choices

    flaky(ask)


def anthropic_retries():
    def ask(base, model):
        patient = anthropic.Anthropic(base_url=base, api_key=KEY, max_retries=2)
        assert patient.messages.create(model=model, messages=ASK, max_tokens=2).content

    flaky(ask)


def openai_models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"


def raises(kind, call, code=None):
    try:
        call()
    except kind as error:
        assert code is None or error.code == code, (error.code, error.body)
        return error
    raise AssertionError(f"no {kind.__name__}")


def openai_errors():
    raises(openai.NotFoundError, lambda: chat(model="nothing"), "model_not_found")
    raises(openai.BadRequestError, lambda: chat(temperature=9))
    raises(openai.BadRequestError, lambda: chat(extra_body={"flavour": 1}))
    raises(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": "long " * 20000}]))
    error = raises(openai.NotFoundError, lambda: client.models.retrieve("nothing"))
    assert error.request_id


def openai_leaves_a_stream():
    stream = chat(stream=True, max_tokens=2000, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    chat(max_tokens=2)


def openai_async():
    async def ask():
        async with openai.AsyncOpenAI(base_url=BASE + "/v1", api_key=KEY) as ai:
            asked = [ai.chat.completions.create(model=MODEL, messages=ASK, max_tokens=8, temperature=0) for _ in range(8)]
            return await asyncio.gather(*asked)

    texts = {answer.choices[0].message.content for answer in asyncio.run(ask())}
    assert len(texts) == 1, texts


def message(body=None, **extra):
    # The package does not name the temperature any more; the API takes it.
    body = {"temperature": 0} | (body or {})
    return claude.messages.create(**(dict(model=MODEL, max_tokens=16, messages=ASK, extra_body=body) | extra))


def anthropic_messages():
    answer = message(system="Be brief.")
    assert answer._request_id and answer.id == "msg_" + answer._request_id
    assert answer.type == "message" and answer.role == "assistant" and answer.content[0].type == "text"
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.usage.output_tokens > 0
    total = answer.usage.input_tokens + answer.usage.cache_read_input_tokens + answer.usage.output_tokens
    assert answer.model_extra["tokrun"]["debited"] == total
    counted = claude.messages.count_tokens(model=MODEL, messages=ASK, system="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


def anthropic_stream():
    whole = message()
    body = {"temperature": 0}
    with claude.messages.stream(model=MODEL, max_tokens=16, messages=ASK, extra_body=body) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens
    kinds = [event.type for event in message(stream=True)]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds


def anthropic_stop_sequence():
    text = message(max_tokens=40).content[0].text
    if len(text) > 5:
        answer = message(max_tokens=40, stop_sequences=[text[3:5]])
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", text[3:5])


def anthropic_structured_output():
    schema = {"type": "object", "properties": {"is_sunny": {"type": "boolean"}}, "required": ["is_sunny"]}
    schema["additionalProperties"] = False
    answer = message(max_tokens=200, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert isinstance(json.loads(answer.content[0].text)["is_sunny"], bool)


def anthropic_tools():
    tool = {"name": "weather", "description": "Tells the weather.", "input_schema": WEATHER}
    answer = message(tools=[tool], tool_choice={"type": "any", "disable_parallel_tool_use": True}, max_tokens=200)
    call = answer.content[0]
    assert answer.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "weather", answer
    is_weather(call.input)
    turns = ASK + [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "Rain."}]},
    ]
    assert message(messages=turns, tools=[tool]).stop_reason
    with claude.messages.stream(
        model=MODEL, max_tokens=200, messages=ASK, tools=[tool], tool_choice={"type": "tool", "name": "weather"}, extra_body={"temperature": 0}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds and final.stop_reason == "tool_use", kinds
    is_weather(final.content[0].input)


def anthropic_leaves_a_stream():
    with message(max_tokens=2000, stream=True) as stream:
        next(iter(stream))
    assert message(max_tokens=2).content


def anthropic_errors():
    raises(anthropic.NotFoundError, lambda: message(model="nothing"))
    raises(anthropic.BadRequestError, lambda: message({"temperature": 9}))
    raises(anthropic.BadRequestError, lambda: message({"flavour": 1}))


def main():
    prefixes = ("openai_", "anthropic_")
    checks = [(name, check) for name, check in globals().items() if name.startswith(prefixes) and callable(check)]
    failed = 0
    for name, check in checks:
        try:
            check()
            print("ok", name)
        except Exception:
            failed += 1
            print("FAILED", name)
            traceback.print_exc(file=sys.stdout)
    print(f"{len(checks) - failed} of {len(checks)} passed: openai {openai.__version__}, anthropic {anthropic.__version__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
