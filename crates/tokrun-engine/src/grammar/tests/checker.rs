//! A JSON Schema checker of the tests' own, for the keywords that the tests use.

use serde_json::Value;

/// Whether `schema` describes `value`. An unknown keyword is a mistake in the test.
pub(super) fn describes(schema: &Value, value: &Value) -> bool {
    within(schema, schema, value)
}

fn within(root: &Value, schema: &Value, value: &Value) -> bool {
    let keywords = match schema {
        Value::Bool(any) => return *any,
        Value::Object(keywords) => keywords,
        _ => panic!("no schema: {schema}"),
    };
    keywords.iter().all(|(keyword, argument)| holds(root, keywords, (keyword, argument), value))
}

type Keywords = serde_json::Map<String, Value>;

fn holds(root: &Value, siblings: &Keywords, (keyword, argument): (&str, &Value), value: &Value) -> bool {
    let (number, text) = (value.as_f64(), value.as_str());
    let (items, fields) = (value.as_array(), value.as_object());
    let limit = || argument.as_f64().expect("a number");
    let schemas = || argument.as_array().expect("a list of schemas");
    let length = text.map(|text| text.chars().count() as f64);
    match keyword {
        "$defs" | "title" | "description" => true,
        "type" => match argument {
            Value::Array(types) => types.iter().any(|name| has_type(name, value)),
            name => has_type(name, value),
        },
        "const" => value == argument,
        "enum" => schemas().contains(value),
        "$ref" => within(root, referred(root, argument), value),
        "anyOf" => schemas().iter().any(|schema| within(root, schema, value)),
        "oneOf" => schemas().iter().filter(|schema| within(root, schema, value)).count() == 1,
        "allOf" => schemas().iter().all(|schema| within(root, schema, value)),
        "minimum" => number.is_none_or(|number| number >= limit()),
        "maximum" => number.is_none_or(|number| number <= limit()),
        "exclusiveMinimum" => number.is_none_or(|number| number > limit()),
        "exclusiveMaximum" => number.is_none_or(|number| number < limit()),
        "multipleOf" => number.is_none_or(|number| number % limit() == 0.0),
        "minLength" => length.is_none_or(|length| length >= limit()),
        "maxLength" => length.is_none_or(|length| length <= limit()),
        "pattern" => text.is_none_or(|text| matches_pattern(argument.as_str().expect("a pattern"), text)),
        "minItems" => items.is_none_or(|items| items.len() as f64 >= limit()),
        "maxItems" => items.is_none_or(|items| items.len() as f64 <= limit()),
        "items" => items.is_none_or(|items| items.iter().all(|item| within(root, argument, item))),
        "required" => {
            fields.is_none_or(|fields| schemas().iter().all(|name| fields.contains_key(name.as_str().expect("a name"))))
        }
        "properties" => fields.is_none_or(|fields| {
            let known = argument.as_object().expect("schemas by name");
            fields.iter().all(|(name, field)| known.get(name).is_none_or(|schema| within(root, schema, field)))
        }),
        "additionalProperties" => fields.is_none_or(|fields| {
            let known = |name: &String| siblings.get("properties").is_some_and(|known| known.get(name).is_some());
            fields.iter().filter(|(name, _)| !known(name)).all(|(_, field)| within(root, argument, field))
        }),
        _ => panic!("the checker does not know `{keyword}`"),
    }
}

fn has_type(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("the name of a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("there is no type `{other}`"),
    }
}

fn referred<'a>(root: &'a Value, reference: &Value) -> &'a Value {
    let pointer = reference.as_str().and_then(|reference| reference.strip_prefix('#')).expect("a local reference");
    root.pointer(pointer).expect("it leads somewhere")
}

/// The patterns that the tests use, by hand: a library would share its mistakes.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern {
        "^[A-Z]{2}[0-9]{1,3}$" => {
            let digits = text.trim_start_matches(|letter: char| letter.is_ascii_uppercase());
            text.len() - digits.len() == 2
                && (1..=3).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_digit())
        }
        "ab+c" => text.split("a").skip(1).any(|rest| {
            let after = rest.trim_start_matches('b');
            after.len() < rest.len() && after.starts_with('c')
        }),
        _ => panic!("the checker does not know /{pattern}/"),
    }
}
