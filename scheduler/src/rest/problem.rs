//! Errors as RFC 9457 problem documents.

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{StatusCode, header},
};
use bytes::Bytes;
use capstan_common::refusal::{Code, FieldError, Refusal};
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::{Value, json};

/// Bytes of JSON that are read where they arrive.
const SMALL_BYTES: usize = 16 << 10;

/// A refusal on its way to an HTTP client.
#[derive(Debug, Clone)]
pub struct Problem {
    refusal: Refusal,
    /// Members beside the standard ones.
    more: Vec<(&'static str, Value)>,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, more: Vec::new() }
    }
}

impl Problem {
    /// A refusal with a further member.
    pub fn with(refusal: Refusal, name: &'static str, value: Value) -> Self {
        Self { refusal, more: vec![(name, value)] }
    }

    /// A code and a sentence.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Refusal::new(code, detail).into()
    }

    /// The code and the sentence.
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.refusal.fmt(f)
    }
}

impl std::error::Error for Problem {}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.refusal.code.http()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let code = self.refusal.code;
        let mut body = json!({
            "type": format!("urn:capstan:{}", code.text()),
            "title": code.title(),
            "status": code.http(),
            "detail": self.refusal.detail,
            "code": code.text(),
        });
        if !self.refusal.errors.is_empty() {
            body["errors"] = json!(self.refusal.errors);
        }
        for (name, value) in &self.more {
            body[*name] = value.clone();
        }
        let mut response = HttpResponse::build(self.status_code());
        response.insert_header((header::CONTENT_TYPE, "application/problem+json"));
        if code == Code::Unauthenticated {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        if let Some(seconds) = self.refusal.retry_after_s {
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        response.body(body.to_string())
    }
}

/// What handlers answer.
pub type Answer = Result<HttpResponse, Problem>;

/// Reads JSON; tells malformed JSON (400) from a wrong field (422 with its pointer).
pub fn parse<T: DeserializeOwned + Serialize>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice::<IgnoredAny>(bytes)
        .map_err(|error| Refusal::new(Code::Malformed, format!("the body is not JSON: {error}")))?;
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        let detail = "must be an object with named fields".into();
        return Err(Refusal::fields(vec![FieldError { pointer: String::new(), detail }]).into());
    }
    // From the text itself: values that are kept as they were written keep all their digits.
    let value = serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_slice(bytes));
    let value = value.map_err(|error| {
        let pointer = pointer(error.path());
        let detail = without_place(&error.into_inner().to_string()).to_owned();
        // A field that is missing is pointed at itself, not at what it is missing from.
        let missing = detail.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let pointer = missing.map_or(pointer.clone(), |field| format!("{pointer}/{field}"));
        Refusal::fields(vec![FieldError { pointer, detail }])
    })?;
    let written: Value = serde_json::from_slice(bytes).unwrap_or_default();
    match list_for_object(&written, &serde_json::to_value(&value).unwrap_or_default(), String::new()) {
        Some(pointer) => {
            let detail = "must be an object with named fields, is a list".into();
            Err(Refusal::fields(vec![FieldError { pointer, detail }]).into())
        }
        None => Ok(value),
    }
}

/// The same of what may be large: on a thread that serves nobody meanwhile.
pub async fn parse_large<T: DeserializeOwned + Serialize + Send + 'static>(bytes: Bytes) -> Result<T, Problem> {
    if bytes.len() <= SMALL_BYTES {
        return parse(&bytes);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes).map_err(|problem| problem.refusal().clone()));
    let parsed = parsed.await.map_err(|_| Problem::new(Code::Unavailable, "the scheduler ends"))?;
    Ok(parsed?)
}

/// An error's sentence without where in the text it is: its field says so.
fn without_place(detail: &str) -> &str {
    detail.rsplit_once(" at line ").map_or(detail, |(sentence, _)| sentence)
}

/// Where a list stands in place of an object: the reader would take its items for fields in the order of their declaration.
fn list_for_object(written: &Value, read: &Value, pointer: String) -> Option<String> {
    match (written, read) {
        (Value::Array(_), Value::Object(_)) => Some(pointer),
        (Value::Object(written), Value::Object(read)) => written.iter().find_map(|(name, value)| {
            let step = name.replace('~', "~0").replace('/', "~1");
            list_for_object(value, read.get(name)?, format!("{pointer}/{step}"))
        }),
        _ => None,
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold(String::new(), |pointer, segment| match segment {
        Segment::Seq { index } => format!("{pointer}/{index}"),
        Segment::Map { key } => format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1")),
        Segment::Enum { variant } => format!("{pointer}/{variant}"),
        Segment::Unknown => pointer,
    })
}

/// A query string into its struct; a wrong parameter is 422 and named.
pub fn query<T: serde::de::DeserializeOwned>(request: &HttpRequest) -> Result<T, Problem> {
    // A parameter without a value is one that was not given.
    let given = form_urlencoded::parse(request.query_string().as_bytes()).filter(|(_, value)| !value.is_empty());
    let given = form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish();
    let pairs = form_urlencoded::parse(given.as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs)).map_err(|error| {
        let pointer = pointer(error.path());
        Refusal::fields(vec![FieldError { pointer, detail: error.into_inner().to_string() }]).into()
    })
}

/// Paths and methods that do not exist.
pub async fn no_route(request: HttpRequest) -> Answer {
    let detail = format!("there is no {} {}; /docs lists what there is", request.method(), request.path());
    Err(Problem::new(Code::NotFound, detail))
}
