//! What goes wrong with a request, in OpenAI's form:
//! `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::generator::GenerateError;
use model::template::TemplateError;
use serde_json::json;
use tools::assistant::AssistantError;

use crate::rates::TooMuch;

/// An answer that says what was wrong.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// The field of the request.
    param: Option<String>,
    code: Option<&'static str>,
    /// Seconds after which to come again.
    retry: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None, retry: None }
    }

    /// A field that can't be as it is.
    pub fn field(param: &str, message: impl std::fmt::Display) -> ApiError {
        let message = format!("{param}: {message}");
        let error = ApiError::new(StatusCode::BAD_REQUEST, message);
        ApiError { param: Some(param.into()), ..error }
    }

    /// A request that can't be read.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A body that is too large.
    pub fn too_large(most: usize) -> ApiError {
        let message = format!("the request is larger than {most} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// No key, or a wrong one.
    pub fn unauthorized() -> ApiError {
        let message = "a valid API key is needed: Authorization: Bearer KEY";
        let error = ApiError::new(StatusCode::UNAUTHORIZED, message);
        ApiError { code: Some("invalid_api_key"), ..error }
    }

    /// A request from where none may come.
    pub fn forbidden(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// A path that isn't there.
    pub fn no_route(path: &str) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, format!("there is no {path}"))
    }

    /// Something that isn't there.
    pub fn not_there(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// A path that is there for another method.
    pub fn no_method() -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method")
    }

    /// A model that isn't served.
    pub fn no_model(name: &str, there: &str) -> ApiError {
        let message = format!("model: there is no {name:?}; there is {there:?}");
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        ApiError { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    /// No place is left.
    pub fn busy() -> ApiError {
        let message = "all places are taken and the queue is full: try again later";
        let error = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message);
        ApiError { code: Some("overloaded"), retry: Some(1), ..error }
    }

    /// A key has used up its minute.
    pub fn too_much(of: &TooMuch) -> ApiError {
        let retry = of.after.as_millis().div_ceil(1000).max(1) as u64;
        let message = format!("more than {} {} a minute: try again in {retry} s", of.most, of.what);
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, message);
        ApiError { code: Some("rate_limit_exceeded"), retry: Some(retry), ..error }
    }

    /// A body that came too slowly.
    pub fn too_slow() -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request took too long to arrive")
    }

    /// The server's own fault.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The same of a request whose fields have other names: (the name in the error, the client's).
    pub fn renamed(mut self, names: &[(&str, &str)]) -> ApiError {
        for (from, to) in names {
            if let Some(rest) = self.param.as_deref().and_then(|p| p.strip_prefix(from))
                && (rest.is_empty() || rest.starts_with('['))
            {
                let param = format!("{to}{rest}");
                if let Some(rest) = self.message.strip_prefix(from) {
                    self.message = format!("{to}{rest}");
                }
                self.param = Some(param);
                break;
            }
        }
        self
    }

    /// The error as JSON, as Anthropic's API has it.
    pub fn anthropic(&self) -> serde_json::Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_server_error() => "api_error",
            _ => "invalid_request_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }

    /// The answer with that body in place of OpenAI's.
    pub fn in_anthropics_form(mut response: Response) -> Response {
        let Some(error) = response.extensions_mut().remove::<ApiError>() else { return response };
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        Response::from_parts(parts, error.anthropic().to_string().into())
    }

    /// The error as JSON.
    pub fn body(&self) -> serde_json::Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For those who tell it in another form.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<GenerateError> for ApiError {
    fn from(error: GenerateError) -> ApiError {
        use GenerateError as Error;
        let message = error.to_string();
        match error {
            Error::TooLong { .. } | Error::NoRoom { .. } => ApiError {
                param: Some("messages".into()),
                code: Some("context_length_exceeded"),
                ..ApiError::new(StatusCode::BAD_REQUEST, message)
            },
            Error::EmptyPrompt | Error::UnknownToken(_) => ApiError::field("prompt", message),
            Error::NoTokens => ApiError::field("max_tokens", message),
            Error::EmptyStop => ApiError::field("stop", message),
            Error::Sampling(model::sampler::SamplingError::NotANumber) => {
                ApiError::internal(message)
            }
            Error::Sampling(model::sampler::SamplingError::Constraint(_)) => {
                ApiError::field("response_format", message)
            }
            Error::Sampling(_) => ApiError::invalid(message),
            _ => ApiError::internal(message),
        }
    }
}

impl From<TemplateError> for ApiError {
    fn from(error: TemplateError) -> ApiError {
        let param = if matches!(error, TemplateError::Tools) { "tools" } else { "messages" };
        ApiError::field(param, error)
    }
}

impl From<AssistantError> for ApiError {
    fn from(error: AssistantError) -> ApiError {
        match error {
            AssistantError::Template(error) => error.into(),
            AssistantError::Generate(error) => error.into(),
            error @ AssistantError::Form(_) => ApiError::field("response_format", error),
            error @ AssistantError::NoTemplate => ApiError::field("messages", error),
        }
    }
}
