//! How a command fails: one type, one exit code, one rendering.

use std::fmt;

use store::StoreError;

/// Why a command did not do what was asked. What was wrong and where; `hint`: what to do.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: u8,
    /// What was wrong, and where.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What `--json` prints beside these.
    pub details: Box<serde_json::Map<String, serde_json::Value>>,
}

impl Failure {
    fn new(exit: u8, message: impl fmt::Display) -> Failure {
        Failure { exit, message: message.to_string(), hint: None, details: Default::default() }
    }

    /// The run failed: exit 1.
    pub fn failed(message: impl fmt::Display) -> Failure {
        Failure::new(1, message)
    }

    /// Wrong usage or invalid input: exit 2.
    pub fn invalid(message: impl fmt::Display) -> Failure {
        Failure::new(2, message)
    }

    /// Stopped by Ctrl-C: exit 130.
    pub fn interrupted(message: impl fmt::Display) -> Failure {
        Failure::new(130, message)
    }

    /// Adds what to do.
    pub fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, "\n  {hint}"))
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        use std::io::ErrorKind;
        let hint = match &error {
            StoreError::Io { source, .. } => match source.kind() {
                ErrorKind::StorageFull => Some("The disk is full: make room, then run it again."),
                ErrorKind::NotFound => Some("Check the path."),
                ErrorKind::PermissionDenied => Some("Check who may read and write there."),
                ErrorKind::ReadOnlyFilesystem => Some("Choose another place with --out."),
                _ => None,
            },
            StoreError::Locked { .. } => {
                Some("Wait until it has ended, or name another folder with --out.")
            }
            StoreError::Damaged { .. } => None,
        };
        let invalid = match &error {
            StoreError::Io { action, .. } => matches!(*action, "read" | "map" | "list the folder"),
            StoreError::Damaged { .. } | StoreError::Locked { .. } => true,
        };
        let failure = if invalid { Failure::invalid(&error) } else { Failure::failed(&error) };
        Failure { hint: hint.map(String::from), ..failure }
    }
}

/// Errors that are about what a command was given.
macro_rules! invalid {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                Failure::invalid(error)
            }
        }
    )*};
}

invalid!(
    data::batches::LoaderError,
    data::microworld::WorldError,
    model::template::TemplateError,
    model::tokenizer::TokenizerError,
);

/// Errors that may hold one of the store, which knows better.
macro_rules! store_or_invalid {
    ($($error:ty),* $(,)?) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Failure {
                use $error as Error;
                match error {
                    Error::Store(error) => error.into(),
                    error => Failure::invalid(error),
                }
            }
        }
    )*};
}

store_or_invalid!(
    data::jsonl::JsonlError,
    data::shards::ShardError,
    train::checkpoint::CheckpointError,
);

impl From<model::directory::ModelError> for Failure {
    fn from(error: model::directory::ModelError) -> Failure {
        use model::directory::ModelError as Error;
        match error {
            Error::Store(error) => error.into(),
            error @ Error::NotAModel(_) => Failure::invalid(error)
                .hint("Name a run directory (runs/NAME), a model directory or a GGUF file."),
            error @ Error::Memory { .. } => {
                Failure::invalid(error).hint("End other programs, or take a smaller model.")
            }
            Error::Adapter(error) => error.into(),
            error @ Error::Base { .. } => Failure::invalid(error)
                .hint("Name the model where it is, and the adapter with --adapter DIR."),
            error => Failure::invalid(error).hint(
                "It is damaged or of another model: copy it anew, or run again what made it.",
            ),
        }
    }
}

impl From<model::adapter::AdapterError> for Failure {
    fn from(error: model::adapter::AdapterError) -> Failure {
        use model::adapter::AdapterError as Error;
        match error {
            Error::Store(error) => error.into(),
            error @ (Error::Base { .. } | Error::Unknown(..)) => Failure::invalid(error)
                .hint("Name the model that the adapter was trained on: base_model_name_or_path in adapter_config.json."),
            error => Failure::invalid(error),
        }
    }
}

impl From<model::export::ExportError> for Failure {
    fn from(error: model::export::ExportError) -> Failure {
        use model::export::ExportError as Error;
        match error {
            Error::Store(error) => error.into(),
            Error::Model(error) => error.into(),
            error @ Error::Exists(_) => Failure::invalid(error)
                .hint("Name another with --out, or remove it first: nothing is overwritten."),
            error @ Error::Disk { .. } => {
                Failure::failed(error).hint("Make room, or name another disk.")
            }
            error @ Error::Unfit(..) => {
                Failure::invalid(error).hint("Take a type of a larger range, such as BF16 or F32.")
            }
            error @ Error::Type(_) => {
                Failure::invalid(error).hint("--to gguf has all types: F32 to Q4_0.")
            }
            error => Failure::invalid(error),
        }
    }
}

impl From<documents::PrepareError> for Failure {
    fn from(error: documents::PrepareError) -> Failure {
        use documents::PrepareError as Error;
        match error {
            Error::Store(error) => error.into(),
            Error::Stopped => Failure::interrupted(error),
            Error::Empty { .. } => {
                Failure::invalid(error).hint("Name files or folders with text in them.")
            }
            error => Failure::invalid(error),
        }
    }
}

#[cfg(feature = "hub")]
impl From<hub::HubError> for Failure {
    fn from(error: hub::HubError) -> Failure {
        use hub::HubError as Error;
        match error {
            Error::Store(error) => error.into(),
            error @ (Error::Name(_) | Error::NoWeights { .. } | Error::NoCache) => {
                Failure::invalid(error)
            }
            error => Failure::failed(error),
        }
    }
}

#[cfg(feature = "collect")]
impl From<collect::CollectError> for Failure {
    fn from(error: collect::CollectError) -> Failure {
        match error {
            collect::CollectError::Store(error) => error.into(),
            error => Failure::invalid(error),
        }
    }
}

impl From<eval::Error> for Failure {
    fn from(error: eval::Error) -> Failure {
        match error {
            eval::Error::Setting(_) | eval::Error::Nothing(_) => Failure::invalid(error),
            error => Failure::failed(error),
        }
    }
}

impl From<train::TrainError> for Failure {
    fn from(error: train::TrainError) -> Failure {
        use train::TrainError as Error;
        match error {
            Error::Checkpoint(error) => error.into(),
            Error::Store(error) => error.into(),
            Error::Loader(error) => error.into(),
            Error::Diverged { .. } => Failure::failed(error),
        }
    }
}

impl From<model::generator::GenerateError> for Failure {
    fn from(error: model::generator::GenerateError) -> Failure {
        Failure::failed(error)
    }
}
