//! The microworld's questions put to a model: scores of each task, and some of the answers.

use data::microworld::{Grade, Question, Task};
use model::message::{Message, Role};
use serde_json::Value;
use tools::Toolbox;

use crate::Error;
use crate::ask::{Speaker, converse};
use crate::interval::Proportion;
use crate::task::{HEADLINE, ModelResults, Score, Transcript, Turn};

/// Answers of a task that are kept, of the right ones and of the wrong ones.
const KEPT: usize = 3;
/// How a model is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// As an assistant, with the tools that a task has.
    Chat,
    /// As a base model: plain text, with answered questions before the question. Tasks with tools
    /// are left out, for there is no call in plain text.
    FewShot,
}

/// Asks all questions and grades the answers. `questions`: those of a task together. `model`:
/// what the report calls it.
///
/// # Errors
/// What the speaker says.
pub fn evaluate(
    speaker: &mut dyn Speaker,
    questions: &[Question],
    model: &str,
    asked: Asked,
) -> Result<ModelResults, Error> {
    let before = speaker.tokens();
    let (mut scores, mut transcripts) = (Vec::new(), Vec::new());
    let mut tasks: Vec<Task> = questions.iter().map(|q| q.task).collect();
    tasks.dedup();
    for task in tasks.into_iter().filter(|t| asked == Asked::Chat || !t.tools()) {
        let questions: Vec<&Question> = questions.iter().filter(|q| q.task == task).collect();
        let answers = match asked {
            Asked::Chat => chat(speaker, task, &questions)?,
            Asked::FewShot => few_shot(speaker, &questions)?,
        };
        let grades: Vec<Grade> =
            questions.iter().zip(&answers).map(|(q, answer)| q.grader.grade(answer)).collect();
        scores.extend(scores_of(task, &questions, &grades));
        for right in [true, false] {
            let some = questions.iter().zip(&answers).zip(&grades);
            let some = some.filter(|(_, grade)| grade.correct == right).take(KEPT);
            transcripts.extend(some.map(|((q, answer), _)| transcript(q, answer, right, asked)));
        }
    }
    // Headline scores first, in their order; the sort keeps the others as they were.
    let place = |s: &Score| HEADLINE.iter().position(|h| *h == s.task).unwrap_or(HEADLINE.len());
    scores.sort_by_key(place);
    Ok(ModelResults {
        model: model.into(),
        asked: match asked {
            Asked::Chat => "chat".into(),
            Asked::FewShot => "few-shot".into(),
        },
        tokens: speaker.tokens() - before,
        scores,
        transcripts,
    })
}

/// What was said after each question, results of tools included.
fn chat(
    speaker: &mut dyn Speaker,
    task: Task,
    questions: &[&Question],
) -> Result<Vec<Vec<Message>>, Error> {
    let tools = if task.tools() { Toolbox::calculator() } else { Toolbox::default() };
    let asked = questions.iter().map(|q| q.messages.clone()).collect();
    // The microworld's conversations teach the calculator without describing it.
    let talks = converse(speaker, asked, &tools, &Value::Null)?;
    Ok(talks.into_iter().zip(questions).map(|(mut t, q)| t.split_off(q.messages.len())).collect())
}

fn few_shot(
    speaker: &mut dyn Speaker,
    questions: &[&Question],
) -> Result<Vec<Vec<Message>>, Error> {
    let texts: Vec<String> = questions.iter().map(|q| q.few_shot.clone()).collect();
    let answers = speaker.complete(&texts)?;
    Ok(answers.into_iter().map(|text| vec![Message::assistant(text.trim())]).collect())
}

/// The task's own score, and what else its answers tell.
fn scores_of(task: Task, questions: &[&Question], grades: &[Grade]) -> Vec<Score> {
    let chance = questions.iter().map(|q| q.chance).sum::<f64>() / questions.len() as f64;
    let score = |name: &str, title: &str, pick: fn(&Grade) -> bool, chance| Score {
        task: name.into(),
        title: title.into(),
        lower_is_better: false,
        share: Proportion::of_outcomes(grades.iter().map(pick)),
        chance,
    };
    let mut scores = vec![score(task.name(), task.title(), |g| g.correct, Some(chance))];
    match task {
        Task::Known => scores.push(Score {
            lower_is_better: true,
            ..score("known_refused", "Wrongly says not to know them", |g| g.admitted, None)
        }),
        Task::Calculator => {
            let title = "Calculator called with the right sum";
            scores.push(score("calculator_called", title, |g| g.called, None));
        }
        _ => {}
    }
    scores
}

fn transcript(question: &Question, answer: &[Message], right: bool, asked: Asked) -> Transcript {
    let mut turns: Vec<Turn> = match asked {
        Asked::Chat => question.messages.iter().map(turn).collect(),
        Asked::FewShot => vec![Turn { role: "text".into(), text: question.few_shot.clone() }],
    };
    turns.extend(answer.iter().map(turn));
    let (task, expected) = (question.task.name().into(), question.expected.clone());
    Transcript { task, turns, expected, right }
}

/// A message for people: a call as `name(arguments)`.
fn turn(message: &Message) -> Turn {
    let calls = message.tool_calls.iter().map(|c| format!("{}({})", c.name, c.arguments));
    let said = (message.role != Role::Assistant || !message.content.is_empty())
        .then(|| message.content.clone());
    let text = said.into_iter().chain(calls).collect::<Vec<_>>().join("\n");
    Turn { role: message.role.as_str().into(), text }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashMap;

    /// Knows all right answers, calls the calculator with what is expected to be its sum, and
    /// errs on every `wrong`th question.
    struct Oracle {
        answers: HashMap<String, String>,
        sums: HashMap<String, String>,
        wrong: usize,
        asked: usize,
        tools: usize,
    }

    impl Oracle {
        fn new(questions: &[Question], wrong: usize) -> Oracle {
            let mut answers = HashMap::new();
            let mut sums = HashMap::new();
            for q in questions {
                let asked = q.messages.last().unwrap().content.clone();
                if let data::microworld::Grader::Calculator(sum) = &q.grader {
                    sums.insert(asked.clone(), sum.expression());
                }
                answers.insert(q.few_shot.clone(), q.expected.clone());
                answers.insert(asked, q.expected.clone());
            }
            Oracle { answers, sums, wrong, asked: 0, tools: 0 }
        }

        fn answer(&mut self, asked: &str) -> String {
            self.asked += 1;
            match self.asked.is_multiple_of(self.wrong) {
                true => "I am not sure; nobody told me.".into(),
                false => self.answers[asked].clone(),
            }
        }
    }

    impl Speaker for Oracle {
        fn reply(&mut self, asked: &[&[Message]], _: &Value) -> Result<Vec<Message>, Error> {
            let say = |talk: &&[Message]| {
                let last = talk.last().unwrap();
                if last.role == Role::Tool {
                    return Message::assistant(last.content.clone());
                }
                match self.sums.get(&last.content) {
                    Some(sum) => {
                        self.tools += 1;
                        Message::call("calculator", json!({"expression": sum}))
                    }
                    _ => Message::assistant(self.answer(&last.content)),
                }
            };
            Ok(asked.iter().map(say).collect())
        }

        fn complete(&mut self, texts: &[String]) -> Result<Vec<String>, Error> {
            Ok(texts.iter().map(|text| format!(" {}", self.answer(text))).collect())
        }

        fn tokens(&self) -> u64 {
            self.asked as u64
        }
    }

    fn questions() -> Vec<Question> {
        use data::microworld::{World, WorldConfig};
        World::new(&WorldConfig::default(), 1).unwrap().questions(12)
    }

    #[test]
    fn right_answers_score_full_marks() {
        let questions = questions();
        let mut oracle = Oracle::new(&questions, usize::MAX);
        let results = evaluate(&mut oracle, &questions, "fine-tuned", Asked::Chat).unwrap();
        assert_eq!(results.scores[..5].iter().map(|s| &s.task[..]).collect::<Vec<_>>(), HEADLINE);
        for score in &results.scores {
            let full = if score.lower_is_better { 0.0 } else { 1.0 };
            assert_eq!((score.share.value, score.share.n), (full, 12), "{}", score.task);
        }
        assert_eq!(oracle.tools, 12);
        assert!(results.transcripts.iter().all(|t| t.right));

        let results = evaluate(&mut oracle, &questions, "base", Asked::FewShot).unwrap();
        assert!(results.score("calculator").is_none());
        assert_eq!(results.score("known").unwrap().share.value, 1.0);
    }

    #[test]
    fn refusals_are_counted_and_shown() {
        let questions = questions();
        let mut oracle = Oracle::new(&questions, 2);
        let results = evaluate(&mut oracle, &questions, "fine-tuned", Asked::Chat).unwrap();
        assert_eq!(results.score("known").unwrap().share.value, 0.5);
        assert_eq!(results.score("known_refused").unwrap().share.value, 0.5);
        assert!(results.score("known_refused").unwrap().lower_is_better);
        let kept = results.transcripts.iter().filter(|t| t.task == "known");
        assert_eq!(kept.clone().count(), 2 * KEPT);
        let wrong = kept.clone().find(|t| !t.right).unwrap();
        assert_eq!(wrong.turns.last().unwrap().text, "I am not sure; nobody told me.");
        let call = results.transcripts.iter().find(|t| t.task == "calculator").unwrap();
        assert!(call.turns[1].text.starts_with("calculator({"), "{call:?}");
    }
}
