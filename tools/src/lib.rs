//! What a model may call: definitions, the calculator, and the reading of calls.
//!
//! What a tool returns is text for the model, errors too: it can try again. Results are untrusted
//! and never become special tokens (the chat template shields them).

pub mod assistant;
pub mod calculator;
pub mod calls;
pub mod generic;
pub mod grammar;
pub mod reader;

use model::message::ToolCall;
use serde_json::{Value, json};

/// Longest result of a call, in bytes.
pub const RESULT: usize = 16_384;

/// A tool: how it is described to the model, and what it does.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The name it is called by.
    pub name: &'static str,
    /// What it does, for the model.
    pub description: &'static str,
    /// JSON schema of the arguments.
    pub parameters: Value,
    /// Takes the arguments, returns the result or what was wrong.
    pub run: fn(&Value) -> Result<String, String>,
}

/// The tools of a conversation.
#[derive(Debug, Clone, Default)]
pub struct Toolbox {
    /// In the order in which they are described.
    pub tools: Vec<Tool>,
}

impl Toolbox {
    /// The calculator alone.
    pub fn calculator() -> Self {
        Toolbox { tools: vec![calculator_tool()] }
    }

    /// Definitions in OpenAI's layout, for the chat template.
    pub fn definitions(&self) -> Value {
        let definition = |tool: &Tool| {
            json!({"type": "function", "function": {
                "name": tool.name, "description": tool.description, "parameters": tool.parameters
            }})
        };
        self.tools.iter().map(definition).collect()
    }

    /// Runs a call. What goes wrong is told to the model as `error: …`.
    pub fn call(&self, call: &ToolCall) -> String {
        let result = match self.tools.iter().find(|tool| tool.name == call.name) {
            Some(tool) => (tool.run)(&call.arguments),
            None => {
                let names: Vec<&str> = self.tools.iter().map(|tool| tool.name).collect();
                Err(format!("no tool is named {:?}; there are: {}", call.name, names.join(", ")))
            }
        };
        match result {
            Ok(text) if text.len() > RESULT => {
                format!("error: the result has {} bytes; {RESULT} are allowed", text.len())
            }
            Ok(text) => text,
            Err(error) => format!("error: {error}"),
        }
    }
}

/// `calculator(expression)`: exact arithmetic.
pub fn calculator_tool() -> Tool {
    Tool {
        name: "calculator",
        description: "Computes an arithmetic expression of numbers, + - * / and parentheses.",
        parameters: json!({
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"]
        }),
        run: |arguments| match arguments["expression"].as_str() {
            Some(expression) => calculator::calculate(expression).map_err(|e| e.to_string()),
            None => Err("the argument \"expression\" must be a text".into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_what_goes_wrong() {
        let tools = Toolbox::calculator();
        let call = |name: &str, arguments| tools.call(&ToolCall { name: name.into(), arguments });
        assert_eq!(call("calculator", json!({"expression": "12*34"})), "408");
        assert_eq!(call("calculator", json!({"expression": "1/0"})), "error: division by zero");
        assert_eq!(
            call("calculator", json!({"x": 1})),
            "error: the argument \"expression\" must be a text"
        );
        assert_eq!(
            call("search", json!({})),
            "error: no tool is named \"search\"; there are: calculator"
        );
        assert_eq!(tools.definitions()[0]["function"]["name"], "calculator");
    }
}
