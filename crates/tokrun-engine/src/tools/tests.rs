//! Calls in every form, cut anywhere.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::template::{ChatMessage, ChatTemplate, Conversation, RenderOptions};
use crate::tokenizer::Tokenizer;
use tokrun_model::{Assets, TokenizerSource};

fn style(form: Form) -> ToolStyle {
    ToolStyle { form, is_taught: false }
}

/// What was read: words, and the calls with their arguments.
fn read(form: Form, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut reader = ToolReader::new(style(form), ["f".to_owned(), "g".to_owned()]);
    let (mut words, mut calls) = (String::new(), Vec::<(String, String)>::new());
    let mut take = |pieces: Vec<ToolPiece>| {
        for piece in pieces {
            match piece {
                ToolPiece::Text(text) => words.push_str(&text),
                ToolPiece::Call(name) => calls.push((name, String::new())),
                ToolPiece::Arguments(text) => calls.last_mut().expect("a call comes first").1.push_str(&text),
            }
        }
    };
    for piece in pieces {
        take(reader.push(piece));
    }
    take(reader.finish());
    assert_eq!(reader.has_called(), !calls.is_empty());
    (words, calls)
}

/// An answer in a form, its words, and its calls with their arguments.
type Case = (Form, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const CASES: [Case; 22] = [
    (Form::Tagged, "Just <b>words</b>.\n", "Just <b>words</b>.\n", &[]),
    (
        Form::Tagged,
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
        "",
        &[("f", "{\"a\": 1}")],
    ),
    (
        Form::Tagged,
        "Well.\n\n<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": {\"b\": \"}<tool_call>\\\"\"}}}</tool_call>\n<tool_call>\n{\"name\": \"g\", \"arguments\": {}}",
        "Well.",
        &[("f", "{\"a\": {\"b\": \"}<tool_call>\\\"\"}}"), ("g", "{}")],
    ),
    (
        Form::Tagged,
        "<tool_call>{\"arguments\": {\"a\": [1, {}]}, \"name\": \"f\"}</tool_call> Done.",
        "Done.",
        &[("f", "{\"a\": [1, {}]}")],
    ),
    (
        Form::Tagged,
        "<tool_call>[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\"}]</tool_call>",
        "",
        &[("f", "{}"), ("g", "{}")],
    ),
    (
        Form::Tagged,
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>",
        "",
        &[("f", "{\"a\": 1}")],
    ),
    (Form::Tagged, "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", "", &[("f", "{}")]),
    (Form::Tagged, "<tool_call>nothing</tool_call>", "<tool_call>nothing</tool_call>", &[]),
    (Form::Tagged, "<tool_call>{\"value\": 1}</tool_call>", "<tool_call>{\"value\": 1}</tool_call>", &[]),
    (Form::Tagged, "<tool_call>\n{\"name\": \"f\"", "<tool_call>\n{\"name\": \"f\"", &[]),
    (Form::Tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"cut", "", &[("f", "{\"a\": \"cut")]),
    (Form::Tagged, "<tool_", "<tool_", &[]),
    (Form::Tagged, "<tool_call>{\"name\": \"other\", \"arguments\": {}}</tool_call>", "", &[("other", "{}")]),
    (
        Form::Listed,
        "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {\"b\": [2]}}]",
        "",
        &[("f", "{\"a\": 1}"), ("g", "{\"b\": [2]}")],
    ),
    (Form::Listed, "A [list] of [TOOL_", "A [list] of [TOOL_", &[]),
    (Form::Bare, "{\"name\": \"f\", \"parameters\": {\"a\": \"b\"}}", "", &[("f", "{\"a\": \"b\"}")]),
    (
        Form::Bare,
        "<|python_tag|>{\"name\": \"f\", \"parameters\": {}}; {\"name\": \"g\", \"parameters\": {}}",
        "",
        &[("f", "{}"), ("g", "{}")],
    ),
    (Form::Bare, "{\"name\": \"Ada\", \"age\": 36}", "{\"name\": \"Ada\", \"age\": 36}", &[]),
    (Form::Bare, "So: {\"name\": \"f\", \"parameters\": {}}", "So: {\"name\": \"f\", \"parameters\": {}}", &[]),
    (
        Form::Piped,
        "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]<|/tool_call|>",
        "",
        &[("f", "{\"a\": 1}")],
    ),
    (Form::Piped, "functools[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]", "", &[("f", "{\"a\": 1}")]),
    (Form::Piped, "It is functional.", "It is functional.", &[]),
];

#[test]
fn calls_are_told_from_words_in_every_form() {
    for (form, answer, words, calls) in CASES {
        let calls: Vec<(String, String)> =
            calls.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        assert_eq!(read(form, &[answer]), (words.to_owned(), calls.clone()), "{form:?} {answer}");
        let each: Vec<String> = answer.chars().map(String::from).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        assert_eq!(read(form, &each), (words.to_owned(), calls), "{form:?} {answer}, a character at a time");
    }
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut reader = ToolReader::new(style(Form::Tagged), []);
    assert_eq!(reader.push("Hm. <tool"), [ToolPiece::Text("Hm.".to_owned())]);
    assert_eq!(reader.push("_call>{\"name\": \"f\", "), []);
    let begun = reader.push("\"arguments\": {\"a");
    assert_eq!(begun, [ToolPiece::Call("f".to_owned()), ToolPiece::Arguments("{\"a".to_owned())]);
    assert_eq!(reader.push("\": 1"), [ToolPiece::Arguments("\": 1".to_owned())]);
    assert_eq!(reader.push("}}</tool_call>"), [ToolPiece::Arguments("}".to_owned())]);
    assert_eq!(reader.finish(), []);
}

proptest! {
    #[test]
    fn where_an_answer_is_cut_makes_no_difference(
        form in prop_oneof![Just(Form::Tagged), Just(Form::Listed), Just(Form::Bare), Just(Form::Piped)],
        pieces in prop::collection::vec(
            "(<tool_call>|</tool_call>|\\[TOOL_CALLS\\]|functools|<\\|python_tag\\|>|\\{\"name\": \"f\", \"arguments\": |\\{|\\}|\\[|\\]|\"|\\\\| |a|,|;|é){0,3}",
            0..12,
        ),
    ) {
        let parts: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let whole = parts.concat();
        prop_assert_eq!(read(form, &parts), read(form, &[&whole]));
    }
}

fn template(source: &str) -> ChatTemplate {
    let assets = Assets {
        chat_template: Some(source.to_owned()),
        ..Assets::of(TokenizerSource::Json(std::path::PathBuf::new()))
    };
    ChatTemplate::compile(&assets).expect("it is well formed")
}

fn tool(name: &str) -> Tool {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] });
    Tool { name: name.to_owned(), description: Some("Tells.".to_owned()), parameters, strict: false }
}

fn after_a_call(tools: Vec<Tool>) -> Conversation {
    let call = ToolCall { id: "call_1".to_owned(), name: "f".to_owned(), arguments: json!({ "city": "Oslo" }) };
    let messages = vec![
        ChatMessage::new("user", "Hi"),
        ChatMessage { tool_calls: vec![call], ..ChatMessage::new("assistant", "") },
        ChatMessage { tool_call_id: Some("call_1".to_owned()), ..ChatMessage::new("tool", "rain") },
        ChatMessage { tool_call_id: Some("call_2".to_owned()), ..ChatMessage::new("tool", "snow") },
    ];
    Conversation { tools, ..messages.into() }
}

fn render(template: &ChatTemplate, conversation: &Conversation) -> String {
    let now = jiff::civil::date(2024, 7, 5).at(9, 3, 7, 0);
    template.render(conversation, &RenderOptions { add_generation_prompt: true, now }).expect("it renders")
}

/// As templates of the Qwen kind are written.
const TAKES_TOOLS: &str = "{%- if tools %}TOOLS{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\\n' }}{% endif -%}\
    {%- for m in messages %}{{ m.role }}: {{ m.content }}\
    {%- if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments | tojson }}</tool_call>\
    {%- endfor %}{% endif %}{{ '\\n' }}{% endfor %}";

#[test]
fn a_template_that_takes_tools_is_given_them() {
    let template = template(TAKES_TOOLS);
    assert_eq!(template.tool_style(), style(Form::Tagged));
    let text = render(&template, &after_a_call(vec![tool("f")]));
    let listed = "TOOLS {\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"Tells.\", \"parameters\": {\"type\": \
                  \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}, \"required\": [\"city\"]}}}\n";
    let turns = "user: Hi\nassistant: <tool_call>f {\"city\": \"Oslo\"}</tool_call>\ntool: rain\ntool: snow\n";
    assert_eq!(text, format!("{listed}{turns}"));
}

#[test]
fn a_template_that_knows_no_tools_is_told_in_the_conversation() {
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    let strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}".to_owned() + plain;
    // One that shows a form, and does not tell of tools, is no better.
    let mentions = plain.to_owned() + "{# <tool_call> #}";
    for (source, begins) in
        [(plain, "system: You can call"), (&strict, "user: Hi\n\nYou can call"), (&mentions, "system: You can")]
    {
        let template = template(source);
        assert_eq!(template.tool_style(), ToolStyle::TAUGHT);
        let text = render(&template, &after_a_call(vec![tool("f")]));
        assert!(text.starts_with(begins), "{text}");
        assert!(text.contains("{\"type\":\"function\",\"function\":{\"name\":\"f\""), "{text}");
        assert!(
            text.contains(
                "assistant: <tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\":\"Oslo\"}}\n</tool_call>\n"
            ),
            "{text}"
        );
        let results = "user: <tool_response>\nrain\n</tool_response>\n<tool_response>\nsnow\n</tool_response>\n";
        assert!(text.ends_with(results), "{text}");
        // Without tools the same conversation is still understood, and nothing is said of tools.
        let text = render(&template, &after_a_call(Vec::new()));
        assert!(text.starts_with("user: Hi\nassistant: <tool_call>") && text.ends_with(results), "{text}");
    }
}

#[test]
fn families_are_known_by_their_templates() {
    let calls = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}MARK{{ c.id }} {{ c.function.name }}{% endfor %}{% endfor %}";
    let told = "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}".to_owned() + calls;
    for (mark, form) in [
        ("[TOOL_CALLS]", Some(Form::Listed)),
        ("<|python_tag|>", Some(Form::Bare)),
        ("<tool_call>", Some(Form::Tagged)),
        ("<tool_call><function=", None),
        ("[TOOL_CALLS][ARGS]", None),
        ("", None),
    ] {
        let template = template(&told.replace("MARK", mark));
        assert_eq!(template.tool_style(), form.map_or(ToolStyle::TAUGHT, style), "{mark}");
        if form == Some(Form::Listed) {
            let text = render(&template, &after_a_call(Vec::new()));
            let id = text.split("[TOOL_CALLS]").nth(1).and_then(|rest| rest.split(' ').next()).expect("an id");
            assert!(
                id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()),
                "Mistral's templates insist: {text}"
            );
        }
    }
    let phi = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'system' and 'tools' in m %}\
               <|tool|>{{ message['tools'] if message else m['tools'] }}<|/tool|>{% endif %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}";
    let template = template(phi);
    assert_eq!(template.tool_style(), style(Form::Piped));
    let text = render(&template, &after_a_call(vec![tool("f")]));
    assert!(text.contains("<|tool|>[{\"name\":\"f\",\"description\":\"Tells.\""), "{text}");
}

/// The fixture's tokenizer, with one of the markers as a special token or without.
fn tokenizer(special: Option<&str>) -> Tokenizer {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama/tokenizer.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(fixture).expect("it is there")).expect("it is JSON");
    if let Some(marker) = special {
        json["model"]["vocab"][marker] = 384.into();
        let token = json!({ "id": 384, "content": marker, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true });
        json["added_tokens"].as_array_mut().expect("it is a list").push(token);
    }
    let folder = tempfile::tempdir().expect("a temporary directory can be made");
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, json.to_string()).expect("it can be written");
    let assets = Assets::of(TokenizerSource::Json(file));
    Tokenizer::from_assets(&assets).expect("it can be read")
}

#[test]
fn every_form_has_grammars_that_its_own_reader_understands() {
    let answers = [
        (Form::Tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\"}}\n</tool_call>"),
        (Form::Listed, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\"}}]"),
        (Form::Bare, "{\"name\": \"f\", \"parameters\": {\"city\": \"Oslo\"}}"),
        (Form::Piped, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"city\": \"Oslo\"}}]<|/tool_call|>"),
    ];
    let strict = [Tool { strict: true, ..tool("f") }, tool("g")];
    for ((form, answer), special) in answers.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let tokenizer = std::sync::Arc::new(tokenizer(special.then(|| form.opens()[0])));
        let compiler = crate::GrammarCompiler::new(std::sync::Arc::clone(&tokenizer), vec![2]);
        let choices = [ToolChoice::Auto, ToolChoice::Required, ToolChoice::Named("f".to_owned())];
        for (choice, parallel) in choices.iter().flat_map(|choice| [(choice, false), (choice, true)]) {
            let grammar = style(form).grammar(&strict, choice, parallel, &tokenizer).expect("it is not free");
            let takes = |text: &str| {
                let mut held = compiler.compile(&grammar, false).unwrap_or_else(|error| panic!("{grammar:?}: {error}"));
                let tokens = tokenizer.encode(text, false).expect("it can be encoded").into_iter().chain([2]);
                let mut logits = vec![0.0; tokenizer.vocab_size()];
                tokens.into_iter().all(|token| {
                    logits.fill(0.0);
                    held.mask(&mut logits).expect("something may come");
                    logits[token as usize] == 0.0 && held.advance(token).is_ok()
                })
            };
            assert!(takes(answer), "{form:?} special: {special} {choice:?} {parallel} {grammar:?}");
            assert!(!takes(&answer.replace("\"city\"", "\"town\"")), "{form:?} is held to its schema");
            assert_eq!(takes("Plain words."), *choice == ToolChoice::Auto, "{form:?} {choice:?}");
            assert_eq!(takes(&format!("Well. {answer}")), *choice == ToolChoice::Auto, "{form:?} {choice:?}");
        }
        assert_eq!(read(form, &[answer]).1, [("f".to_owned(), "{\"city\": \"Oslo\"}".to_owned())]);
        assert_eq!(style(form).grammar(&[tool("g")], &ToolChoice::Auto, true, &tokenizer), None, "the model is free");
    }
}
