//! The fields of a request, one by one: what is wrong with one is told by its name.

use model::sampler::Sampling;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tools::grammar::Form;

use crate::error::ApiError;

/// Most values of `stop`, and bytes of each.
const STOPS: (usize, usize) = (16, 1000);
/// Most likeliest tokens that are told.
const LIKELIEST: usize = 20;

/// A request's JSON object.
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn read(body: &[u8]) -> Result<Fields, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields(map)),
            Ok(_) => Err(ApiError::invalid("the request is not a JSON object")),
            Err(e) => Err(ApiError::invalid(format!("the request is not JSON: {e}"))),
        }
    }

    /// Fields that come from another form of request.
    pub fn new(fields: Map<String, Value>) -> Fields {
        Fields(fields)
    }

    /// Looks at a field and leaves it.
    pub fn peek(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// Takes a field out; `null` is none.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|e| ApiError::field(name, e))
            }
        }
    }

    /// The same of a field that must be there.
    ///
    /// # Errors
    /// If it is not, or of another type.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::field(name, "it is needed"))
    }

    /// Takes out a list of not too many.
    ///
    /// # Errors
    /// If it is longer than `most`, or none.
    pub fn few(&mut self, name: &str, most: usize) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take::<Vec<Value>>(name)? {
            Some(list) if list.len() > most => {
                Err(ApiError::field(name, format!("{} are more than {most}", list.len())))
            }
            list => Ok(list),
        }
    }

    /// Refuses what would change the answer and isn't done here.
    ///
    /// # Errors
    /// If one of the fields is there, and not what it is without.
    pub fn refuse(&mut self, fields: &[(&str, Value)]) -> Result<(), ApiError> {
        for (name, plain) in fields {
            let value = self.0.remove(*name).unwrap_or(Value::Null);
            let same = value.is_null()
                || value == *plain
                || value.as_f64().is_some_and(|v| plain.as_f64() == Some(v));
            if !same {
                return Err(ApiError::field(name, format!("{value} is not supported here")));
            }
        }
        Ok(())
    }

    /// How tokens are chosen. Where no seed is given, `fresh` is one.
    ///
    /// # Errors
    /// What is of another type or out of its range.
    pub fn sampling(&mut self, vocab: usize, fresh: u64) -> Result<Sampling, ApiError> {
        let mut logit_bias = Vec::new();
        for (id, bias) in self.take::<Map<String, Value>>("logit_bias")?.unwrap_or_default() {
            let wrong = || ApiError::field("logit_bias", "it maps ids of tokens to numbers");
            let id: u32 = id.parse().map_err(|_| wrong())?;
            logit_bias.push((id, bias.as_f64().ok_or_else(wrong)? as f32));
        }
        let seed: Option<i64> = self.take("seed")?;
        let plain = Sampling::default();
        let sampling = Sampling {
            temperature: self.take("temperature")?.unwrap_or(1.0),
            top_p: self.take("top_p")?.unwrap_or(plain.top_p),
            top_k: self.take::<i64>("top_k")?.map_or(0, |k| usize::try_from(k).unwrap_or(0)),
            min_p: self.take("min_p")?.unwrap_or(plain.min_p),
            repetition_penalty: self.take("repetition_penalty")?.unwrap_or(1.0),
            presence_penalty: self.take("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: self.take("frequency_penalty")?.unwrap_or(0.0),
            logit_bias,
            seed: seed.map_or(fresh, |s| s as u64),
            logprobs: None,
        };
        sampling.check(vocab).map_err(|e| {
            let text = e.to_string();
            let name = text.split(' ').next().unwrap_or_default().to_string();
            ApiError::field(&name, text.strip_prefix(&name).unwrap_or(&text).trim_start())
        })?;
        Ok(sampling)
    }

    /// How urgent the answer is: as vLLM's, less is more, but nobody can be more urgent than who doesn't say.
    ///
    /// # Errors
    /// If it is no number from 0 on.
    pub fn priority(&mut self) -> Result<i32, ApiError> {
        Ok(-self.take::<u16>("priority")?.map_or(0, i32::from))
    }

    /// What form the answer is to have; `None` for any.
    ///
    /// # Errors
    /// A form that isn't known.
    pub fn form(&mut self) -> Result<Option<Form>, ApiError> {
        let name = "response_format";
        let Some(mut format) = self.take::<Value>(name)? else { return Ok(None) };
        let kind = format["type"].as_str().unwrap_or_default().to_string();
        let mut text = |key: &str| match format[key].take() {
            Value::String(text) => Ok(text),
            _ => Err(ApiError::field(name, format!("{kind} needs a text {key:?}"))),
        };
        Ok(Some(match &kind[..] {
            "text" => return Ok(None),
            "json_object" => Form::Json(json!({"type": "object"})),
            "json_schema" => match format["json_schema"]["schema"].take() {
                schema @ (Value::Object(_) | Value::Bool(_)) => Form::Json(schema),
                _ => return Err(ApiError::field(name, "json_schema needs a \"schema\"")),
            },
            "regex" => Form::Regex(text("regex")?),
            "grammar" => Form::Lark(text("grammar")?),
            _ => {
                let known = "text, json_object, json_schema, regex and grammar";
                return Err(ApiError::field(
                    name,
                    format!("the type {kind:?} isn't one of {known}"),
                ));
            }
        }))
    }

    /// Whether the receipt is to have the request.
    ///
    /// # Errors
    /// If it is neither `"short"` nor `"full"`.
    pub fn full_receipt(&mut self) -> Result<bool, ApiError> {
        match self.take::<String>("receipt")?.as_deref() {
            None | Some("short") => Ok(false),
            Some("full") => Ok(true),
            Some(_) => Err(ApiError::field("receipt", "it is \"short\" or \"full\"")),
        }
    }

    /// Strings that end an answer: one or several.
    ///
    /// # Errors
    /// Too many, too long ones, or something else.
    pub fn stop(&mut self) -> Result<Vec<String>, ApiError> {
        let stop: Vec<String> = match self.take::<Value>("stop")? {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(many) => serde_json::from_value(many).map_err(|e| ApiError::field("stop", e))?,
        };
        if stop.len() > STOPS.0 || stop.iter().any(|s| s.len() > STOPS.1 || s.is_empty()) {
            let why = format!("at most {} strings of 1 to {} bytes", STOPS.0, STOPS.1);
            return Err(ApiError::field("stop", why));
        }
        Ok(stop)
    }

    /// Number of answers, from 1 to `most`.
    ///
    /// # Errors
    /// If it is another.
    pub fn answers(&mut self, most: usize) -> Result<usize, ApiError> {
        let n = self.take("n")?.unwrap_or(1);
        match (1..=most).contains(&n) {
            true => Ok(n),
            false => Err(ApiError::field("n", format!("{n} is not from 1 to {most}"))),
        }
    }

    /// Whether a stream is to end with what it cost.
    ///
    /// # Errors
    /// If `stream_options` are something else.
    pub fn usage_wanted(&mut self) -> Result<bool, ApiError> {
        let options: Option<Map<String, Value>> = self.take("stream_options")?;
        Ok(options.is_some_and(|o| o.get("include_usage") == Some(&true.into())))
    }

    /// How many of the likeliest tokens are told, if any are.
    ///
    /// # Errors
    /// If they are too many.
    pub fn likeliest(&mut self, name: &str) -> Result<Option<usize>, ApiError> {
        match self.take::<usize>(name)? {
            Some(n) if n > LIKELIEST => {
                Err(ApiError::field(name, format!("{n} is more than {LIKELIEST}")))
            }
            n => Ok(n),
        }
    }
}
