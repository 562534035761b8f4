//! A small random model is asked: many questions together and one by one give the same.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use compute::Cpu;
use data::encode::{SPECIAL, special_tokens};
use eval::ask::{Speaker, converse};
use eval::speaker::Greedy;
use model::config::Config;
use model::generator::{Generator, Options};
use model::init::{Init, initialise};
use model::message::{Message, Role};
use model::template::{CHATML, ChatTemplate};
use model::tokenizer::{Tokenizer, TrainOptions};
use model::transformer::Transformer;
use serde_json::Value;
use tools::Toolbox;

fn tokenizer() -> Tokenizer {
    let options = TrainOptions {
        vocab_size: 300,
        special_tokens: SPECIAL.map(String::from).to_vec(),
        ..TrainOptions::default()
    };
    Tokenizer::train(["user assistant where does Mira live"; 3], &options, &mut |_| {}).unwrap()
}

fn model() -> Transformer {
    let config = Config::from_json(
        r#"{"model_type": "qwen3", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 8, "max_position_embeddings": 96, "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "tie_word_embeddings": true}"#,
    )
    .unwrap();
    let init = Init { embedding_std: 0.5, output_gain: 0.8, ..Init::default() };
    let parameters = initialise(&config, &init, 5);
    Transformer::new(config, parameters)
}

#[test]
fn together_and_alone_give_the_same() {
    let (model, tokenizer) = (Arc::new(model()), Arc::new(tokenizer()));
    let template = ChatTemplate::new(CHATML, special_tokens(&tokenizer)).unwrap();
    let options = Options::new(model.config(), 4);
    let cpu = Arc::new(Cpu::new(1));
    let generator = Generator::start(model.clone(), tokenizer.clone(), cpu, options).unwrap();
    let mut speaker = Greedy::new(&generator, &tokenizer, Some(&template), 96, 12);

    let asked: Vec<Vec<Message>> = ["Where?", "where does Mira live", "x", "<|im_end|>", "12*34"]
        .map(|text| vec![Message::user(text)])
        .to_vec();
    let tools = Toolbox::default();
    let talks = converse(&mut speaker, asked.clone(), &tools, &Value::Null).unwrap();
    assert!(speaker.tokens() >= 5);
    for (talk, asked) in talks.iter().zip(asked) {
        assert_eq!(talk[1].role, Role::Assistant);
        assert_eq!(*talk, converse(&mut speaker, vec![asked], &tools, &Value::Null).unwrap()[0]);
    }

    let texts = ["where does".to_string(), "live".to_string()];
    let together = speaker.complete(&texts).unwrap();
    assert!(together.iter().all(|text| !text.contains('\n')));
    assert_eq!(together[1], speaker.complete(&texts[1..]).unwrap()[0]);

    // Too long a question is an error, not cut.
    let long = vec![Message::user("where ".repeat(200))];
    assert!(speaker.reply(&[&long], &Value::Null).is_err());
    let mut base = Greedy::new(&generator, &tokenizer, None, 96, 12);
    let error = base.reply(&[&talks[0]], &Value::Null).unwrap_err();
    assert!(error.to_string().contains("no chat template"), "{error}");
}
