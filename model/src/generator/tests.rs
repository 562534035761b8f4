#![allow(clippy::unwrap_used)]

use compute::tape::Workspace;
use compute::{IGNORE, Span};

use super::*;
use crate::init::{Init, initialise};
use crate::tokenizer::TrainOptions;
use crate::transformer::Step;

const CONTEXT: usize = 320;
/// The id of the only special token.
const END: u32 = 256;

struct World {
    model: Arc<Transformer>,
    tokenizer: Arc<Tokenizer>,
    cpu: Arc<Cpu>,
}

impl World {
    fn new() -> World {
        let options = TrainOptions {
            vocab_size: 257,
            special_tokens: vec!["<end>".into()],
            ..TrainOptions::default()
        };
        let tokenizer = Tokenizer::train(["ab"], &options, &mut |_| {}).unwrap();
        assert_eq!(tokenizer.special_id("<end>"), Some(END));
        World { model: World::model(7), tokenizer: Arc::new(tokenizer), cpu: Arc::new(Cpu::new(2)) }
    }

    fn model(seed: u64) -> Arc<Transformer> {
        let config = Config {
            rope_theta: 1e4,
            tie_word_embeddings: false,
            ..Config::qwen3(crate::config::Sizes {
                vocab: 257,
                width: 24,
                ffn: 40,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 8,
                context: CONTEXT,
            })
        };
        let init = Init {
            embedding_std: 0.5,
            matrix_gain: 1.5,
            output_gain: 0.8,
            qk_norm: 1.3,
            induction: false,
        };
        Arc::new(Transformer::new(config.clone(), initialise(&config, &init, seed)))
    }

    fn options(&self) -> Options {
        Options::new(self.model.config(), 8)
    }

    fn start(&self, options: Options) -> Generator {
        let (model, tokenizer) = (self.model.clone(), self.tokenizer.clone());
        Generator::start(model, tokenizer, self.cpu.clone(), options).unwrap()
    }

    fn one(&self, request: Request) -> Completion {
        self.start(self.options()).submit(request).unwrap().wait().unwrap()
    }
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * seed + seed) % 256).collect()
}

/// Requests of all kinds, some of which begin alike.
fn requests() -> Vec<Request> {
    let mut requests = Vec::new();
    for (i, len) in [1, 3, 63, 64, 65, 130, 200, 130, 40, 100, 7, 64].into_iter().enumerate() {
        let sampled = Sampling {
            temperature: 1.0,
            top_k: [0, 20][i / 2 % 2],
            top_p: 0.95,
            min_p: 0.01,
            repetition_penalty: 1.1,
            seed: i as u64,
            ..Sampling::default()
        };
        requests.push(Request {
            prompt: prompt(i as u32 % 3, len),
            max_tokens: Some(20 + 9 * i),
            sampling: Sampling {
                logprobs: Some(2),
                ..[Sampling::default(), sampled][i % 2].clone()
            },
            stop: vec!["zq".into()],
            stop_ids: vec![END],
            ..Request::default()
        });
    }
    requests
}

/// What doesn't depend on what was remembered.
fn essence(completion: &Completion) -> (Vec<u32>, String, Vec<u32>, Reason) {
    let bits = completion.logprobs.iter().flat_map(|l| {
        l.top.iter().map(|t| t.1).chain([l.chosen]).map(f32::to_bits).collect::<Vec<_>>()
    });
    let Completion { tokens, text, reason, .. } = completion;
    (tokens.clone(), text.clone(), bits.collect(), reason.clone())
}

/// Answers that repeat themselves, so that guesses are right, with and without guesses.
/// The system would give them, and end the program when they are used.
#[test]
#[cfg(target_os = "linux")]
fn pages_for_which_there_is_no_memory_are_refused() {
    let world = World::new();
    let page = world.model.pages(KvType::F32, 1).unwrap().bytes();
    let available = store::available_memory().unwrap() as usize;
    let pages = available / page + (256 << 20) / page; // other tests give some back meanwhile
    let refused = world.model.pages(KvType::F32, pages);
    assert!(matches!(refused, Err(compute::kv::KvError::TooLarge { .. })));
}

#[test]
fn guesses_change_nothing_but_the_steps() {
    let world = World::new();
    let mut guessed = 0;
    for seed in 0..6 {
        let period = 4 + seed as usize;
        let sampling = Sampling {
            temperature: [0.0, 0.2][seed as usize % 2],
            // So that the answer goes round in circles.
            logit_bias: (0..period as u32).map(|i| (7 * i + seed, 30.0)).collect(),
            seed: u64::from(seed),
            logprobs: Some(1),
            ..Sampling::default()
        };
        let request = Request {
            prompt: prompt(seed, period).into_iter().cycle().take(60).collect(),
            max_tokens: Some(150),
            sampling,
            stop_ids: vec![END],
            ..Request::default()
        };
        let answer = |lookup| {
            let generator = world.start(Options { lookup, ..world.options() });
            generator.complete([request.clone(), request.clone()]).unwrap()
        };
        let (plain, guessing) = (answer(0), answer(8));
        assert_eq!(plain[0].usage.guessed, 0);
        for (a, b) in plain.iter().zip(&guessing) {
            assert_eq!(essence(a), essence(b));
            assert_eq!(a.usage.generated, b.usage.generated);
            guessed += b.usage.guessed;
        }
    }
    assert!(guessed > 100, "only {guessed} tokens were guessed");
}

/// A draft that is always right where tokens are the likeliest ones (the model itself), and one that knows
/// nothing.
#[test]
fn a_draft_changes_nothing_but_the_steps() {
    let world = World::new();
    let answers = |draft| {
        let options = Options { lookup: 0, draft, ..world.options() };
        world.start(options).complete(requests()).unwrap()
    };
    let plain = answers(None);
    let generated: usize = plain.iter().map(|a| a.usage.generated).sum();
    for (seed, range) in [(7, generated / 4..generated), (8, 0..generated / 20)] {
        let drafted = answers(Some(World::model(seed)));
        for (a, b) in plain.iter().zip(&drafted) {
            assert_eq!(essence(a), essence(b));
        }
        let guessed: usize = drafted.iter().map(|a| a.usage.guessed).sum();
        assert!(range.contains(&guessed), "{guessed} of {generated} guessed by draft {seed}");
    }
}

#[test]
fn alone_or_among_others_the_same_bytes() {
    let world = World::new();
    let alone: Vec<_> = requests().into_iter().map(|r| essence(&world.one(r))).collect();
    assert!(alone.iter().any(|a| a.3 == Reason::Length) && alone[0] != alone[1]);
    // All at once; few at a time with small chunks of prompts and little memory; other threads.
    let one_thread = World { cpu: Arc::new(Cpu::new(1)), ..World::new() };
    let narrow = Options { sequences: 3, tokens: 500, chunk: 10, ..world.options() };
    for (world, options) in [
        (&world, world.options()),
        (&world, narrow.clone()),
        (&one_thread, Options { sequences: 64, ..world.options() }),
    ] {
        let generator = world.start(options);
        let mut remembered = 0;
        // Once more with all that is remembered from the first time.
        for _ in 0..2 {
            let completions = generator.complete(requests()).unwrap();
            for (alone, completion) in alone.iter().zip(&completions) {
                assert_eq!(&essence(completion), alone);
                remembered += completion.usage.remembered;
            }
        }
        assert!(remembered > 0);
    }
}

/// Against the forward pass of training, which knows nothing of pages.
#[test]
fn cached_steps_compute_what_training_computes() {
    let world = World::new();
    let generator = world.start(Options { chunk: 50, ..world.options() });
    for request in requests() {
        let greedy = request.sampling.temperature == 0.0;
        let n = request.prompt.len();
        let mut tokens = request.prompt.clone();
        let completion = generator.submit(request).unwrap().wait().unwrap();
        tokens.extend(&completion.tokens);
        let mut targets = vec![IGNORE; n - 1];
        targets.extend(&completion.tokens);
        tokens.pop();
        let spans = [Span { start: 0, len: tokens.len() }];
        let mut workspace = Workspace::new(world.cpu.clone(), DType::F32);
        let nats = world.model.loss_rows(&mut workspace, &tokens, &targets, &spans);
        for (nats, logprobs) in nats[n - 1..].iter().zip(&completion.logprobs) {
            assert!((nats + logprobs.chosen).abs() < 2e-5, "{nats} {}", logprobs.chosen);
            assert!(!greedy || logprobs.chosen == logprobs.top[0].1);
        }
    }
}

#[test]
fn answers_end_where_they_should() {
    let world = World::new();
    let base = Request {
        prompt: prompt(5, 10),
        max_tokens: Some(60),
        sampling: Sampling { temperature: 1.0, seed: 3, ..Sampling::default() },
        ..Request::default()
    };
    let free = world.one(base.clone());
    assert_eq!((free.tokens.len(), &free.reason), (60, &Reason::Length));
    assert_eq!(
        free.usage,
        Usage { prompt: 10, remembered: 0, generated: 60, guessed: free.usage.guessed }
    );
    assert_eq!(free.text, world.tokenizer.decode(&free.tokens).replace("<end>", ""));

    // A stop token isn't part of the answer.
    let id = free.tokens[30];
    let at = free.tokens.iter().position(|t| *t == id).unwrap();
    let stopped = world.one(Request { stop_ids: vec![id], ..base.clone() });
    assert_eq!(
        (stopped.tokens, stopped.reason),
        (free.tokens[..at].to_vec(), Reason::StopToken(id))
    );
    assert_eq!(stopped.usage.generated, at + 1);

    // A stop string over several tokens; no part of it is ever shown.
    let stop: String = free.text.chars().skip(20).take(3).collect();
    let before = &free.text[..free.text.find(&stop).unwrap()];
    let request = Request { stop: vec![stop.clone()], ..base.clone() };
    let mut shown = String::new();
    for event in world.start(world.options()).submit(request).unwrap() {
        match event {
            Event::Prompt(_) | Event::Embedding(_) => panic!("nobody asked"),
            Event::Token(token) => shown += &token.text,
            Event::Done(done) => assert_eq!(done.reason, Reason::StopString(stop.clone())),
            Event::Error(error) => panic!("{error}"),
        }
        assert!(before.starts_with(&shown), "{shown:?} of {before:?}");
    }
    assert_eq!(shown, before);

    // To the end of the context, and no further.
    let full = world.one(Request { max_tokens: None, ..base });
    assert_eq!((full.tokens.len(), full.reason), (CONTEXT - 10, Reason::Length));
    assert_eq!(full.tokens[..60], free.tokens);
}

/// Bytes of half characters and special tokens wait for nobody but come in order.
#[test]
fn text_comes_whole_and_in_order() {
    let world = World::new();
    let generator = world.start(world.options());
    let bias = |ids: &[u32]| ids.iter().map(|id| (*id, 1000.0)).collect();
    let ask = |ids: &[u32]| {
        let sampling = Sampling { logit_bias: bias(ids), temperature: 1.0, ..Sampling::default() };
        let request =
            Request { prompt: vec![1], max_tokens: Some(40), sampling, ..Request::default() };
        let mut pieces = Vec::new();
        for event in generator.submit(request).unwrap() {
            match event {
                Event::Prompt(_) | Event::Embedding(_) => panic!("nobody asked"),
                Event::Token(token) => pieces.push((Some(token.id), token.text)),
                Event::Done(done) => pieces.push((None, done.text)),
                Event::Error(error) => panic!("{error}"),
            }
        }
        pieces
    };
    let byte = |b: u8| world.tokenizer.encode(std::str::from_utf8(&[b]).unwrap())[0];
    // The two bytes of é, and a special token.
    let halves = world.tokenizer.encode("é");
    assert_eq!(halves.len(), 2);
    let pieces = ask(&[halves[0], halves[1], END, byte(b'x')]);
    let ids: Vec<u32> = pieces.iter().filter_map(|p| p.0).collect();
    let mut expected = String::new();
    for run in ids.split(|id| *id == END) {
        expected += &world.tokenizer.decode(run);
    }
    let text: String = pieces.iter().map(|p| p.1.as_str()).collect();
    assert_eq!(text, expected);
    assert!(ids.contains(&END) && text.contains('é') && text.contains('\u{fffd}'));
}

#[test]
fn what_cannot_be_done_is_refused() {
    let world = World::new();
    let generator = world.start(Options { tokens: 128, ..world.options() });
    let base = Request { prompt: vec![1; 10], max_tokens: Some(5), ..Request::default() };
    let refused = |request: Request| generator.submit(request).err().map(|e| e.to_string());
    for (request, why) in [
        (Request { prompt: vec![], ..base.clone() }, "empty"),
        (Request { prompt: vec![257], ..base.clone() }, "257"),
        (Request { max_tokens: Some(0), ..base.clone() }, "max_tokens"),
        (Request { max_tokens: Some(CONTEXT - 9), ..base.clone() }, "context holds 320"),
        (Request { max_tokens: Some(usize::MAX), ..base.clone() }, "context holds 320"),
        (Request { prompt: vec![1; CONTEXT], max_tokens: None, ..base.clone() }, "context"),
        (Request { max_tokens: Some(119), ..base.clone() }, "memory for 128"),
        (Request { stop: vec![String::new()], ..base.clone() }, "stop string"),
        (
            Request { sampling: Sampling { top_p: 2.0, ..Sampling::default() }, ..base.clone() },
            "top_p",
        ),
    ] {
        let error = refused(request).unwrap();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(refused(base), None);
    let petabytes = Options { tokens: usize::MAX / 2, ..world.options() };
    let (model, tokenizer) = (world.model.clone(), world.tokenizer.clone());
    let started = Generator::start(model, tokenizer, world.cpu.clone(), petabytes);
    assert!(matches!(started, Err(GenerateError::Memory(_))));
}

#[test]
fn broken_weights_are_an_error() {
    let world = World::new();
    let mut model = (*world.model).clone();
    let norm = model.parameters.iter_mut().find(|p| p.name == "model.norm.weight").unwrap();
    norm.value.f32_mut()[3] = f32::NAN;
    let world = World { model: Arc::new(model), ..world };
    let generator = world.start(world.options());
    for temperature in [0.0, 1.0] {
        let sampling = Sampling { temperature, ..Sampling::default() };
        let request = Request { prompt: vec![1], sampling, ..Request::default() };
        let answer = generator.submit(request).unwrap().wait();
        assert!(matches!(answer, Err(GenerateError::Sampling(SamplingError::NotANumber))));
    }
}

#[test]
fn the_impatient_are_let_go() {
    let world = World::new();
    // One at a time: the second can only be answered because the first was cancelled, or done.
    let generator = world.start(Options { sequences: 1, tokens: 320, ..world.options() });
    let request = Request { prompt: prompt(1, 100), max_tokens: Some(200), ..Request::default() };
    let mut dropped = Vec::new();
    for _ in 0..20 {
        let mut events = generator.submit(request.clone()).unwrap();
        if dropped.len() % 2 == 0 {
            assert!(matches!(events.next(), Some(Event::Token(_))));
        }
        dropped.push(());
    }
    let whole = generator.submit(request).unwrap().wait().unwrap();
    assert_eq!(whole.tokens.len(), 200);
    assert!(whole.usage.remembered >= 99);

    // Whoever still waits when the generator goes is told; nobody waits for ever.
    let ask = |id| Request { prompt: vec![id], ..Request::default() };
    let waiting: Vec<Events> = (0..30).map(|id| generator.submit(ask(id)).unwrap()).collect();
    drop(generator);
    for events in waiting {
        assert!(matches!(events.wait(), Ok(_) | Err(GenerateError::Stopped)));
    }
}

#[test]
fn many_threads_may_ask() {
    let world = World::new();
    let generator = world.start(Options { queue: 1, sequences: 2, ..world.options() });
    let expected: Vec<_> = requests().into_iter().map(|r| essence(&world.one(r))).collect();
    std::thread::scope(|scope| {
        for (request, expected) in requests().into_iter().zip(&expected) {
            let generator = &generator;
            scope.spawn(move || {
                let completion = generator.submit(request).unwrap().wait().unwrap();
                assert_eq!(&essence(&completion), expected);
            });
        }
    });
}

/// Against the forward pass of training again, in chunks, and whatever is remembered.
#[test]
fn prompts_are_told_of() {
    let world = World::new();
    let generator = world.start(world.options());
    for (len, most) in [(1, 3), (2, 0), (64, 1), (65, 0), (200, 5)] {
        let request = Request {
            prompt: prompt(2, len),
            max_tokens: Some(most),
            prompt_logprobs: Some(2),
            ..Request::default()
        };
        let mut events = generator.submit(request).unwrap();
        let Some(Event::Prompt(told)) = events.next() else { panic!("first the prompt") };
        assert_eq!(told.len(), len - 1);
        let tokens = events.filter(|event| matches!(event, Event::Token(_))).count();
        assert_eq!(tokens, most);
        let (tokens, targets) = (&prompt(2, len)[..len - 1], &prompt(2, len)[1..]);
        if tokens.is_empty() {
            continue;
        }
        let spans = [Span { start: 0, len: tokens.len() }];
        let mut workspace = Workspace::new(world.cpu.clone(), DType::F32);
        let nats = world.model.loss_rows(&mut workspace, tokens, targets, &spans);
        for (nats, told) in nats.iter().zip(&told) {
            assert!((nats + told.chosen).abs() < 2e-5, "{nats} {}", told.chosen);
            assert_eq!(told.top.len(), 2);
        }
    }
}

/// Against a pass over the whole prompt: in chunks, beside answers, and whatever is remembered. What the head makes of the
/// rows of that pass are the logits.
#[test]
fn embeddings_are_means() {
    let world = World::new();
    let generator = world.start(world.options());
    let mut workspace = Workspace::new(world.cpu.clone(), DType::F32);
    let config = world.model.config();
    let beside = Request { prompt: prompt(1, 30), max_tokens: Some(60), ..Request::default() };
    let beside = generator.submit(beside).unwrap();
    for len in [1, 2, 64, 65, 200, 200] {
        let tokens = prompt(3, len);
        let request = Request { prompt: tokens.clone(), embedding: true, ..Request::default() };
        let mut events = generator.submit(request).unwrap();
        let Some(Event::Embedding(embedding)) = events.next() else { panic!("an embedding") };
        assert!(events.next().is_none());

        let mut pages = world.model.pages(KvType::F32, len.div_ceil(PAGE)).unwrap();
        let held = (0..len.div_ceil(PAGE)).map(|_| pages.allocate().unwrap()).collect();
        let mut kv = compute::kv::KvSequence { pages: held, len: 0 };
        let mut steps = [Step { tokens: &tokens, logits: 0, kv: &mut kv }];
        let rows = world.model.hidden_cached(&mut workspace, &mut pages, &mut steps);
        let mean = |i: usize| {
            rows.chunks_exact(config.hidden_size).map(|row| f64::from(row[i])).sum::<f64>()
        };
        let mean: Vec<f64> = (0..config.hidden_size).map(mean).collect();
        let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (x, mean) in embedding.iter().zip(&mean) {
            assert_eq!(*x, (mean / length) as f32);
        }
    }
    assert_eq!(beside.wait().unwrap().tokens.len(), 60);
}

/// Answers with adapters, beside others without, are those of a generator that has nothing else.
#[test]
fn adapters_are_models_of_their_own() {
    let world = World::new();
    let other = World {
        model: World::model(8),
        tokenizer: world.tokenizer.clone(),
        cpu: world.cpu.clone(),
    };
    let generator = world.start(Options { adapters: vec![other.model.clone()], ..world.options() });
    let both = requests().into_iter().flat_map(|r| [Request { adapter: 1, ..r.clone() }, r]);
    let answers = generator.complete(both).unwrap();
    for (pair, request) in answers.chunks(2).zip(requests()) {
        assert_eq!(essence(&pair[0]), essence(&other.one(request.clone())));
        assert_eq!(essence(&pair[1]), essence(&world.one(request)));
    }
    let unknown = generator.submit(Request { prompt: vec![1], adapter: 2, ..Request::default() });
    assert!(matches!(unknown, Err(GenerateError::UnknownAdapter(2))));
}

#[test]
fn what_is_remembered_is_its_owners() {
    let world = World::new();
    let generator = world.start(world.options());
    let ask = |owner| Request {
        prompt: prompt(1, 150),
        max_tokens: Some(2),
        owner,
        ..Request::default()
    };
    let remembered = |owner| {
        let answer = generator.submit(ask(owner)).unwrap().wait().unwrap();
        answer.usage.remembered
    };
    assert_eq!([remembered(1), remembered(2), remembered(1), remembered(2)], [0, 0, 149, 149]);
    // Those who ask the same at the same time compute it once.
    let answers = generator.complete((0..8).map(|_| ask(3))).unwrap();
    let computed: usize = answers.iter().map(|a| a.usage.prompt - a.usage.remembered).sum();
    assert_eq!(computed, 150 + 7);
}
