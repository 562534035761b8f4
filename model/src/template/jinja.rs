//! The Jinja dialect that chat templates are written in: that of Python's `transformers`.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};

/// Instructions that one rendering may take. A message takes about a hundred.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat_template";

/// A compiled template.
#[derive(Debug)]
pub(super) struct Jinja {
    environment: Environment<'static>,
}

impl Jinja {
    pub(super) fn new(source: &str) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |why: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        });
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, without_generation_tags(source))?;
        Ok(Jinja { environment })
    }

    /// Renders at most `limit` bytes.
    pub(super) fn render(&self, variables: Value, limit: usize) -> Result<String, Error> {
        let mut out = Bounded { bytes: Vec::new(), limit };
        self.environment.get_template(NAME)?.render_captured_to(variables, &mut out)?;
        String::from_utf8(out.bytes)
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
    }
}

/// A buffer with an end, since few instructions can write much.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + part.len() > self.limit {
            return Err(io::Error::other(format!("it renders to more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` marks the assistant's words for trainers; it renders nothing. A block that is
/// always taken has the same scoping and whitespace.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word = tag[2..end].trim_matches(|c: char| c.is_whitespace() || "-+".contains(c));
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// `json.dumps(value, ensure_ascii=False)`: what models saw in training. Jinja's own filter escapes
/// for HTML.
fn tojson(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?; // `transformers` takes it; non-ASCII is kept
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Python::compact())),
        Some(n) => {
            let indent = " ".repeat(n.min(64));
            value.serialize(&mut Serializer::with_formatter(&mut out, Python::pretty(&indent)))
        }
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    String::from_utf8(out).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// Python's spacing and floats.
struct Python<'a> {
    pretty: Option<PrettyFormatter<'a>>,
    compact: CompactFormatter,
}

impl<'a> Python<'a> {
    fn compact() -> Self {
        Python { pretty: None, compact: CompactFormatter }
    }

    fn pretty(indent: &'a str) -> Self {
        Python {
            pretty: Some(PrettyFormatter::with_indent(indent.as_bytes())),
            compact: CompactFormatter,
        }
    }
}

/// Hands a call on to the layout in use.
macro_rules! layout {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {$(
        fn $name<W: ?Sized + Write>(&mut self, w: &mut W $(, $argument: $type)*) -> io::Result<()> {
            match &mut self.pretty {
                Some(pretty) => pretty.$name(w $(, $argument)*),
                None => self.compact.$name(w $(, $argument)*),
            }
        }
    )*};
}

impl Formatter for Python<'_> {
    layout! {
        begin_array();
        end_array();
        end_array_value();
        begin_object();
        end_object();
        end_object_value();
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_array_value(w, first),
            None => w.write_all(if first { b"" } else { b", " }),
        }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        match &mut self.pretty {
            Some(pretty) => pretty.begin_object_key(w, first),
            None => w.write_all(if first { b"" } else { b", " }),
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }

    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        w.write_all(python_float(value).as_bytes())
    }
}

/// `repr` of a Python float: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        format!("{value:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, String> {
        let variables = minijinja::context! { v => Value::from(minijinja::value::Serde(serde_json::json!({
            "b": [1, 2.0, true, null, []], "a": {"é": "<x> \"\u{1}\n\u{7f}€"}, "c": {}
        }))) };
        Jinja::new(source).map_err(|e| e.to_string())?.render(variables, 10_000).map_err(|e| {
            let cause = std::error::Error::source(&e).map(|s| format!(": {s}"));
            e.to_string() + &cause.unwrap_or_default()
        })
    }

    /// The expected texts are those of `json.dumps(v, ensure_ascii=False, indent=…)`.
    #[test]
    fn json_is_written_as_python_writes_it() {
        assert_eq!(
            render("{{ v | tojson }}").unwrap(),
            "{\"b\": [1, 2.0, true, null, []], \"a\": {\"é\": \"<x> \\\"\\u0001\\n\u{7f}€\"}, \"c\": {}}"
        );
        assert_eq!(
            render("{{ v | tojson(indent=2) }}").unwrap(),
            "{\n  \"b\": [\n    1,\n    2.0,\n    true,\n    null,\n    []\n  ],\n  \"a\": {\n    \"é\": \"<x> \\\"\\u0001\\n\u{7f}€\"\n  },\n  \"c\": {}\n}"
        );
    }

    /// The expected texts are Python's.
    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e16, "1e+16"),
            (-2.5e-300, "-2.5e-300"),
            (1e22, "1e+22"),
        ] {
            assert_eq!(python_float(value), text);
        }
    }

    #[test]
    fn generation_tags_render_nothing() {
        assert_eq!(
            render("a{% generation %}b{%- endgeneration -%} c").unwrap(),
            "ab c".replace(' ', "")
        );
        assert_eq!(render("{% if true %}generation{% endif %}").unwrap(), "generation");
    }

    #[test]
    fn a_template_ends() {
        let nested = "{% for a in range(9999) %}{% for a in range(9999) %}{% for a in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
        assert!(render(nested).unwrap_err().contains("fuel"));
        let long = "{% for a in range(9999) %}{{ 'abc' * 100 }}{% endfor %}";
        assert!(render(long).unwrap_err().contains("10000 bytes"), "{}", render(long).unwrap_err());
        let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(render(deep).is_err());
    }

    #[test]
    fn python_methods_work_and_exceptions_carry_their_text() {
        assert_eq!(render("{{ ' a b '.strip().split(' ')[-1].upper() }}").unwrap(), "B");
        assert_eq!(render("{{ v.get('d', 3) }}{{ v.items() | length }}").unwrap(), "33");
        assert!(
            render("{{ raise_exception('roles must alternate') }}")
                .unwrap_err()
                .contains("alternate")
        );
        assert!(render("{% if %}").is_err());
    }
}
