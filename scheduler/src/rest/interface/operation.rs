//! One operation of the interface: what it takes, what it answers, and who may.

use super::shape::Shape;
use capstan_verb::{RIGHTS, Verb, access::Role};
use serde_json::{Value, json};

/// What an operation is about; that says where a token of some namespaces may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The namespace of its path.
    Namespace,
    /// The call or container of its path: its own record says of which namespace it is.
    Record,
    /// All namespaces, of which each token is shown its own.
    List,
    /// The cluster.
    Cluster,
}

impl Scope {
    /// Its name in the document.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Record => "record",
            Self::List => "list",
            Self::Cluster => "cluster",
        }
    }
}

/// A parameter that is not in the path.
pub struct Parameter {
    /// `query` or `header`.
    pub place: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its JSON schema.
    pub schema: Value,
    /// Whether it must be there.
    pub required: bool,
}

/// A body, of a request or of an answer.
pub struct Content {
    /// Its media type.
    pub media: &'static str,
    /// What it holds.
    pub shape: Shape,
    /// One that is right.
    pub example: Option<Value>,
}

/// An answer that is no refusal.
pub struct Answered {
    /// HTTP status.
    pub status: u16,
    /// What it says.
    pub about: &'static str,
    /// What it brings.
    pub content: Option<Content>,
}

/// The body of a request.
pub struct Taken {
    /// In each of the ways in which it may be written.
    pub contents: Vec<Content>,
    /// Whether it must be there.
    pub required: bool,
    /// Bytes, at most; of lines, of each. Nothing where it streams on.
    pub most: Option<usize>,
}

/// One method of one path.
pub struct Operation {
    /// HTTP method, in capitals.
    pub method: &'static str,
    /// The path's pattern.
    pub path: &'static str,
    /// What generated clients call it.
    pub id: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// What else there is to know; may be empty.
    pub about: &'static str,
    /// Where it stands in the document.
    pub tag: &'static str,
    /// The verb that it asks, if it asks one.
    pub verb: Option<&'static str>,
    /// The role that it needs.
    pub role: Role,
    /// What it is about.
    pub scope: Scope,
    /// Of query and header.
    pub parameters: Vec<Parameter>,
    /// What it takes.
    pub body: Option<Taken>,
    /// What it answers.
    pub answers: Vec<Answered>,
    /// HTTP statuses of what it may refuse with, beside those that every operation has.
    pub refusals: Vec<u16>,
    /// Another interface's way to say no, beside ours.
    pub foreign_refusal: Option<Shape>,
}

pub const JSON: &str = "application/json";
pub const NDJSON: &str = "application/x-ndjson";

impl Operation {
    /// One that asks a verb: role and scope are those of the verbs' table.
    pub fn of<V: Verb>(
        method: &'static str,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        answer: &'static str,
    ) -> Self {
        let scope = match RIGHTS.iter().find(|rights| rights.verb == V::NAME).map(|rights| rights.scope) {
            Some("In") => Scope::Namespace,
            Some("OfRecord") => Scope::Record,
            Some("List") => Scope::List,
            _ => Scope::Cluster,
        };
        let content = Content { media: JSON, shape: Shape::of::<V::Answer>(), example: None };
        let answers = vec![Answered { status: 200, about: answer, content: Some(content) }];
        Self { verb: Some(V::NAME), answers, ..Self::plain(method, path, id, summary, (V::ROLE, scope)) }
    }

    /// One that is no verb.
    pub fn plain(
        method: &'static str,
        path: &'static str,
        id: &'static str,
        summary: &'static str,
        (role, scope): (Role, Scope),
    ) -> Self {
        Self {
            method,
            path,
            id,
            summary,
            about: "",
            tag: "",
            verb: None,
            role,
            scope,
            parameters: Vec::new(),
            body: None,
            answers: Vec::new(),
            refusals: Vec::new(),
            foreign_refusal: None,
        }
    }

    pub fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub fn query(mut self, name: &'static str, schema: Value, about: &'static str) -> Self {
        self.parameters.push(Parameter { place: "query", name, about, schema, required: false });
        self
    }

    pub fn header(mut self, name: &'static str, schema: Value, about: &'static str) -> Self {
        self.parameters.push(Parameter { place: "header", name, about, schema, required: false });
        self
    }

    /// The parameter that was named last must be there.
    pub fn required(mut self) -> Self {
        if let Some(last) = self.parameters.last_mut() {
            last.required = true;
        }
        self
    }

    /// A list that comes page by page.
    pub fn paged(self, default: usize, most: usize) -> Self {
        let limit = json!({"type": "integer", "minimum": 1, "default": default, "x-cut-at": most});
        self.query("after", json!({"type": "string"}), "the `next` of the page before").query(
            "limit",
            limit,
            "the most that a page has; a larger page than there is is cut, and `next` goes on",
        )
    }

    /// It takes JSON of so many bytes, at most.
    pub fn takes(self, shape: Shape, example: Value, most: usize) -> Self {
        self.takes_as(JSON, shape, Some(example), Some(most))
    }

    /// It takes this too.
    pub fn takes_as(
        mut self,
        media: &'static str,
        shape: Shape,
        example: Option<Value>,
        most: impl Into<Option<usize>>,
    ) -> Self {
        let most = most.into();
        let body = self.body.get_or_insert(Taken { contents: Vec::new(), required: true, most });
        body.contents.push(Content { media, shape, example });
        self
    }

    /// The status of its answer.
    pub fn status(mut self, status: u16) -> Self {
        if let Some(last) = self.answers.last_mut() {
            last.status = status;
        }
        self
    }

    /// The same with another status says something else.
    pub fn also(mut self, status: u16, about: &'static str) -> Self {
        let content = self.answers.last().and_then(|last| last.content.as_ref());
        let content = content.map(|known| Content { media: known.media, shape: known.shape.clone(), example: None });
        self.answers.push(Answered { status, about, content });
        self
    }

    /// Its answer has no body.
    pub fn empty(mut self, status: u16, about: &'static str) -> Self {
        self.answers = vec![Answered { status, about, content: None }];
        self
    }

    /// Its answer is written otherwise than the verb's.
    pub fn answers(mut self, status: u16, about: &'static str, media: &'static str, shape: Shape) -> Self {
        self.answers.retain(|answer| answer.status != status);
        self.answers.push(Answered { status, about, content: Some(Content { media, shape, example: None }) });
        self
    }

    /// What an answer looks like.
    pub fn example(mut self, example: Value) -> Self {
        if let Some(content) = self.answers.last_mut().and_then(|last| last.content.as_mut()) {
            content.example = Some(example);
        }
        self
    }

    pub fn refuses(mut self, statuses: &[u16]) -> Self {
        self.refusals.extend(statuses);
        self
    }

    /// Some refusals are written as the clients of another interface read them.
    pub fn refuses_as(mut self, shape: Shape) -> Self {
        self.foreign_refusal = Some(shape);
        self.refuses(&[400])
    }

    /// Names of its query parameters.
    pub fn query_names(&self) -> impl Iterator<Item = &'static str> {
        self.parameters.iter().filter(|parameter| parameter.place == "query").map(|parameter| parameter.name)
    }
}
