//! A server of a tiny model with random weights, and what tests ask it with.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::channel;

use compute::Cpu;
use data::encode::{SPECIAL, special_tokens};
use model::config::{Config, Sizes};
use model::generator::Options;
use model::init::{Init, initialise};
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::{Tokenizer, TrainOptions};
use model::transformer::Transformer;
use serde_json::{Value, json};
use serve::{App, Keys, Limits, PerMinute, Served, Settings, Tls, Web};
use tools::assistant::Assistant;

/// A server of a tiny model with random weights, on a thread of its own.
pub struct Server {
    pub at: SocketAddr,
    /// Ends when the server has.
    pub serving: std::thread::JoinHandle<std::io::Result<()>>,
}

/// What a server may have.
#[derive(Default)]
pub struct Doors {
    pub keys: Option<Keys>,
    pub rates: PerMinute,
    pub tls: Option<Tls>,
    pub web: Option<Web>,
    /// Whether its model does nothing but call a tool, in place of anything at random.
    pub calls: bool,
    /// Whether there is a second model, by the name "caller", that does so.
    pub both: bool,
    pub stop: Option<fn() -> bool>,
}

pub fn start(threads: usize, places: usize, keys: Option<Keys>) -> Server {
    open(threads, places, Doors { keys, ..Doors::default() })
}

/// What a server knows, without the server.
pub fn app(threads: usize, places: usize, doors: &mut Doors) -> Arc<App> {
    let cpu = Arc::new(Cpu::new(threads));
    let served = |name: &str, (model, tokenizer): (Transformer, Tokenizer)| {
        let (config, tokenizer) = (model.config().clone(), Arc::new(tokenizer));
        let options = Options { queue: places, chunk: 16, ..Options::new(&config, places.min(8)) };
        let template = ChatTemplate::new(CHATML, special_tokens(&tokenizer)).unwrap();
        let assistant =
            Assistant::new(Arc::new(model), tokenizer, Some(template), cpu.clone(), options)
                .unwrap();
        let engine = json!({"kv": "f32", "exact": false});
        Served { name: name.into(), hash: "0".repeat(64), assistant, engine }
    };
    let model = served("tiny", if doors.calls { caller() } else { tiny() });
    let others = doors.both.then(|| served("caller", caller()));
    let settings = Settings {
        keys: doors.keys.take(),
        rates: doors.rates,
        hosts: vec!["models.example".into()],
        limits: Limits { body: 100_000, answers: 4, places, connections: 64 },
        web: doors.web.take(),
    };
    App::new(model, others.into_iter().collect(), settings)
}

/// A server with these doors.
pub fn open(threads: usize, places: usize, mut doors: Doors) -> Server {
    let app = app(threads, places, &mut doors);
    let (tell, told) = channel();
    let stop = doors.stop.unwrap_or(|| false);
    let serving = std::thread::spawn(move || {
        let listening = move |at| tell.send(at).unwrap();
        serve::serve(app, "127.0.0.1:0".parse().unwrap(), doors.tls, listening, stop)
    });
    Server { at: told.recv().unwrap(), serving }
}

/// A model that says anything.
fn tiny() -> (Transformer, Tokenizer) {
    let options = TrainOptions {
        vocab_size: 300,
        special_tokens: SPECIAL.map(String::from).to_vec(),
        ..TrainOptions::default()
    };
    let texts = ["user assistant tool system what is said and what is not"; 3];
    let tokenizer = Tokenizer::train(texts, &options, &mut |_| {}).unwrap();
    let config = Config {
        bos_token_id: tokenizer.special_id(SPECIAL[0]),
        eos_token_id: tokenizer.special_id(SPECIAL[2]),
        ..Config::qwen3(Sizes {
            vocab: 300,
            width: 32,
            ffn: 64,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            context: 2048,
        })
    };
    let init = Init { output_gain: 1.0, embedding_std: 0.3, ..Init::default() };
    (Transformer::new(config.clone(), initialise(&config, &init, 1)), tokenizer)
}

/// What the other model calls. No token of it occurs twice.
pub const CALL: &str = r#"{"name":"calculator","arguments": {"expression"
:
"6*7"}}"#;

/// A model whose next token depends on the last one alone: after a line break it calls the calculator.
fn caller() -> (Transformer, Tokenizer) {
    let options = TrainOptions {
        vocab_size: 400,
        special_tokens: SPECIAL.map(String::from).to_vec(),
        ..TrainOptions::default()
    };
    let tokenizer = Tokenizer::train([CALL, CALL], &options, &mut |_| {}).unwrap();
    let id = |name: &str| tokenizer.special_id(name).unwrap();
    let mut script = vec![tokenizer.encode("\n")[0], id("<tool_call>")];
    script.extend(tokenizer.encode(CALL));
    script.extend([id("</tool_call>"), id("<|im_end|>")]);
    let vocab = tokenizer.vocab_size();
    let config = json!({
        "model_type": "qwen3", "vocab_size": vocab, "hidden_size": vocab,
        "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1,
        "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4, "tie_word_embeddings": false,
        "eos_token_id": id("<|im_end|>")
    });
    let config = Config::from_json(&config.to_string()).unwrap();
    // Nothing but the embedding reaches the head: outputs of layers start at 0.
    let mut parameters = initialise(&config, &Init::default(), 1);
    for parameter in parameters.iter_mut() {
        let is = |name: &str| parameter.name.contains(name);
        let (embedding, head) = (is("embed_tokens"), is("lm_head"));
        if embedding || head {
            let data = parameter.value.f32_mut();
            data.fill(0.0);
            let pairs: Vec<(u32, u32)> = match embedding {
                true => (0..vocab as u32).map(|i| (i, i)).collect(),
                false => script.windows(2).map(|pair| (pair[1], pair[0])).collect(),
            };
            for (row, column) in pairs {
                data[row as usize * vocab + column as usize] = 1.0;
            }
        }
    }
    (Transformer::new(config, parameters), tokenizer)
}

impl Server {
    /// Status, headers and body of a request.
    pub fn raw(&self, head: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.at).unwrap();
        let length = body.len();
        write!(stream, "{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_lowercase(), body.to_string())
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json");
        let (status, _, body) = self.raw(&head, &body.to_string());
        (status, serde_json::from_str(&body).unwrap())
    }

    /// A good answer.
    pub fn ask(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.post(path, &body);
        assert_eq!(status, 200, "{body}: {answer}");
        answer
    }

    /// The events of a stream in which they have names; each is told in its data, too.
    pub fn named(&self, path: &str, body: &Value) -> Vec<Value> {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost");
        let (_, _, text) = self.raw(&head, &body.to_string());
        let text: String = unchunked(&text);
        let event = |event: &str| {
            let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(data["type"], name);
            Some(data)
        };
        text.split("\n\n").filter_map(event).collect()
    }

    /// The events of a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut stream = TcpStream::connect(self.at).unwrap();
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap);
        let data: Vec<String> =
            lines.filter_map(|l| Some(l.strip_prefix("data: ")?.to_string())).collect();
        assert_eq!(data.last().map(String::as_str), Some("[DONE]"));
        data[..data.len() - 1].iter().map(|d| serde_json::from_str(d).unwrap()).collect()
    }
}

/// A body without the lengths of its chunks.
fn unchunked(mut text: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = text.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        text = &rest[length + 2..];
    }
    whole
}
