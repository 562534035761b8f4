//! Calls of Qwen3-Coder: `<function=NAME><parameter=KEY>VALUE</parameter></function>`, which is not XML.

use model::message::ToolCall;
use serde_json::{Map, Value};

use super::{alone, literal, parameters};

/// The call in `body`. A value is text where its tool says so, and JSON, if it is any, elsewhere.
pub(super) fn read(body: &str, tools: Option<&Value>) -> Option<Vec<ToolCall>> {
    let inside = body.strip_prefix("<function=")?.strip_suffix("</function>")?;
    let (name, mut rest) = inside.split_once('>')?;
    let mut arguments = Map::new();
    while let Some(parameter) = rest.trim_start().strip_prefix("<parameter=") {
        let (key, after) = parameter.split_once('>')?;
        let (value, after) = after.split_once("</parameter>")?;
        // A line break after the one tag, and before the other, is theirs.
        let value = value.strip_prefix('\n').unwrap_or(value);
        let value = value.strip_suffix('\n').unwrap_or(value);
        let text = || Value::String(value.to_string());
        let value = match kind(name, key, tools) {
            Some("string") => text(),
            _ => serde_json::from_str(value).unwrap_or_else(|_| text()),
        };
        arguments.insert(key.to_string(), value);
        rest = after;
    }
    let whole = rest.trim().is_empty() && !name.is_empty();
    whole.then(|| vec![ToolCall { name: name.into(), arguments: arguments.into() }])
}

/// As [`Format::rules`](super::Format::rules): parameters in the order of the schema.
pub(super) fn rules(tools: &[(&str, Value)]) -> String {
    let (mut call, mut rules) = (Vec::new(), String::new());
    for (t, (name, arguments)) in tools.iter().enumerate() {
        let mut inside = String::new();
        for (p, (key, schema, required)) in parameters(arguments).into_iter().enumerate() {
            inside += &format!(" p{t}_{p}{}", if required { "" } else { "?" });
            let open = literal(&format!("<parameter={key}>\n"));
            let close = "\n</parameter>\n";
            rules += &match schema["type"] == "string" && schema["enum"].is_null() {
                true => format!(
                    "p{t}_{p}: {open} v{t}_{p}\nv{t}_{p}[suffix={}]: /(?s:.*)/\n",
                    literal(close)
                ),
                false if schema["enum"].is_array() => {
                    let each = schema["enum"].as_array().into_iter().flatten();
                    let each: Vec<String> = each
                        .map(|e| literal(e.as_str().map_or(&e.to_string(), |text| text)))
                        .collect();
                    format!("p{t}_{p}: {open} ({}) {}\n", each.join(" | "), literal(close))
                }
                false => {
                    let schema = alone(schema, arguments);
                    format!("p{t}_{p}: {open} %json {schema} {}\n", literal(close))
                }
            };
        }
        let open = literal(&format!("<function={name}>\n"));
        call.push(format!("f{t}"));
        rules += &format!("f{t}: {open}{inside} \"</function>\"\n");
    }
    format!("call: {}\n{rules}", call.join(" | "))
}

/// The type of a tool's parameter, if its definition tells.
fn kind<'a>(name: &str, key: &str, tools: Option<&'a Value>) -> Option<&'a str> {
    let functions = tools?.as_array()?.iter().map(|tool| tool.get("function").unwrap_or(tool));
    let function = functions.into_iter().find(|f| f["name"] == name)?;
    let arguments = &function["parameters"];
    let all = parameters(arguments);
    let (_, schema, _) = all.into_iter().find(|(name, ..)| *name == key)?;
    schema["type"].as_str()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_have_the_types_of_their_tool() {
        let body = "<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=b>\n12\n</parameter>\n\
                    <parameter=c>\ntwo\nlines\n</parameter>\n</function>";
        let tools = json!([{"type": "function", "function": {
            "name": "f", "parameters": {"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
        }}]);
        let call = read(body, Some(&tools)).unwrap().remove(0);
        assert_eq!(call.name, "f");
        assert_eq!(call.arguments, json!({"a": 12, "b": "12", "c": "two\nlines"}));
        assert_eq!(read(body, None).unwrap()[0].arguments["b"], 12);
        for broken in ["<function=f>", "<function=f>x</function>", "<function=>\n</function>"] {
            assert_eq!(read(broken, None), None, "{broken}");
        }
    }
}
