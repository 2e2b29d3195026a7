//! Compared with what transformers renders, by way of `tests/fixtures/make.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jiff::civil::date;
use proptest::prelude::*;
use serde::Deserialize;
use tokrun_model::TokenizerSource;

use super::*;

fn compile(source: &str) -> Result<ChatTemplate, EngineError> {
    ChatTemplate::compile(&Assets {
        tokenizer: TokenizerSource::Json(PathBuf::new()),
        chat_template: Some(source.to_owned()),
        bos_token: Some("<s>".to_owned()),
        eos_token: Some("</s>".to_owned()),
        pad_token: Some("<pad>".to_owned()),
        unk_token: Some("<unk>".to_owned()),
        end_token_ids: Vec::new(),
    })
}

fn options(add_generation_prompt: bool) -> RenderOptions {
    RenderOptions { add_generation_prompt, now: date(2024, 7, 5).at(9, 3, 7, 0) }
}

fn user(content: &str) -> ChatMessage {
    ChatMessage::new("user", content)
}

fn render(source: &str) -> Result<String, EngineError> {
    compile(source)?.render(&vec![user("Hi")].into(), &options(true))
}

#[derive(Deserialize)]
struct Expected {
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn every_template_renders_as_transformers_renders_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/templates");
    let read =
        |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let conversations: Vec<Vec<BTreeMap<String, String>>> =
        serde_json::from_str(&read("conversations.json")).expect("conversations");
    let expected: BTreeMap<String, Vec<Expected>> = serde_json::from_str(&read("expected.json")).expect("texts");
    assert_eq!(expected.len(), 7);
    for (name, expected) in expected {
        let template = compile(&read(&format!("{name}.jinja"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(expected.len(), 2 * conversations.len());
        for (index, expected) in expected.into_iter().enumerate() {
            let turn = |turn: &BTreeMap<String, String>| ChatMessage::new(&turn["role"], &turn["content"]);
            let messages: Vec<ChatMessage> = conversations[index / 2].iter().map(turn).collect();
            match (template.render(&messages.into(), &options(index % 2 == 1)), expected) {
                (Ok(text), Expected { text: Some(expected), .. }) => assert_eq!(text, expected, "{name} {index}"),
                (Err(EngineError::TemplateRefused { reason }), Expected { error: Some(expected), .. }) => {
                    assert_eq!(reason, expected, "{name} {index}");
                }
                (result, expected) => panic!("{name} {index}: {result:?} for {:?} {:?}", expected.text, expected.error),
            }
        }
    }
}

#[test]
fn a_model_without_a_template_names_the_remedy() {
    let mut assets = Assets::of(TokenizerSource::Json(PathBuf::new()));
    let error = ChatTemplate::compile(&assets).expect_err("there is none");
    assert!(matches!(error, EngineError::NoChatTemplate) && error.to_string().contains("--raw"), "{error}");
    assets.chat_template = Some("{{ bos_token is defined }}{{ bos_token }}".to_owned());
    let text =
        ChatTemplate::compile(&assets).and_then(|template| template.render(&Conversation::default(), &options(false)));
    assert_eq!(text.expect("it renders"), "False", "a token that the model lacks is undefined");
}

#[test]
fn a_broken_template_is_no_refusal() {
    for source in ["{% if %}", "{{ messages[0].nothing.nowhere }}", "{{ 1 / 0 }}", "{{ missing_function() }}"] {
        let error = render(source).expect_err("it is broken");
        assert!(matches!(error, EngineError::BrokenTemplate { .. }), "{source}: {error}");
    }
    let refused = "{% macro no() %}{{ raise_exception('not ' ~ messages[0].content) }}{% endmacro %}{{ no() }}";
    let error = render(refused).expect_err("it refuses");
    assert_eq!(error.to_string(), "the chat template refuses this conversation: not Hi");
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let nested = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let error = render(nested).expect_err("it takes forever");
    assert!(matches!(error, EngineError::BrokenTemplate { .. }), "{error}");
    let endless = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    assert!(matches!(render(endless), Err(EngineError::BrokenTemplate { .. })));
}

#[test]
fn generation_blocks_are_scopes_and_nothing_else() {
    let cases = [
        ("{% generation %}a{% endgeneration %}", "{% with %}a{% endwith %}"),
        ("{%- generation -%} a {%-endgeneration+%}", "{%- with -%} a {%- endwith +%}"),
        ("{% set generation = 1 %}{{ generation }}", "{% set generation = 1 %}{{ generation }}"),
        ("{% if generation %}{% endif %} {% generations %}", "{% if generation %}{% endif %} {% generations %}"),
        ("{%", "{%"),
    ];
    for (source, expected) in cases {
        assert_eq!(without_generation_blocks(source), expected);
    }
}

proptest! {
    #[test]
    fn no_source_makes_it_panic(source in "(\\{%|%\\}|\\{\\{|\\}\\}|[-+ ]|generation|end|for|x|in|messages){0,12}") {
        let _ = render(&source);
    }

    #[test]
    fn any_content_passes_unchanged(content in any::<String>()) {
        let template = compile("{{ messages[0].content }}|").expect("it is well formed");
        let text = template.render(&vec![user(&content)].into(), &options(false)).expect("it renders");
        prop_assert_eq!(text, format!("{content}|"));
    }
}
