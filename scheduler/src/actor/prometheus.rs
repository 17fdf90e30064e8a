//! Asks a Prometheus server for requests of models that pass Capstan by.

use bytes::Bytes;
use capstan_common::id::FunctionKey;
use capstan_scheduler_core::{event::Requests, scale_to_zero::prometheus_duration};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Uri;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// The longest answer that is read.
const ANSWER_MAX: usize = 1 << 20;
/// The longest wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A Prometheus server.
#[derive(Debug, Clone)]
pub struct Prometheus {
    client: Client<HttpConnector, Empty<Bytes>>,
    query: Uri,
    /// Whether it was told that it does not answer.
    failing: Arc<AtomicBool>,
}

/// What it answers to a query.
#[derive(Deserialize)]
struct Answer {
    data: Data,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "snake_case")]
enum Data {
    Vector(Vec<Sample>),
}

#[derive(Deserialize)]
struct Sample {
    value: (f64, String),
}

/// The guide's query for a model's requests (SPEC V04).
fn query_of(function: &FunctionKey, model: &str, counter: &str, within_ms: u64) -> String {
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let (namespace, model) = (quoted(&function.namespace), quoted(model));
    let range = prometheus_duration(within_ms);
    format!("sum(increase({counter}{{namespace={namespace},model_name={model}}}[{range}]))")
}

fn read(body: &[u8]) -> Result<Requests, String> {
    let answer: Answer = serde_json::from_slice(body).map_err(|e| format!("its answer cannot be read: {e}"))?;
    let Data::Vector(samples) = answer.data;
    match samples.as_slice() {
        [] => Ok(Requests::Missing),
        [sample] => {
            let value = sample.value.1.parse::<f64>().ok().filter(|value| value.is_finite());
            value.map(Requests::Counted).ok_or_else(|| format!("its answer is `{}`", sample.value.1))
        }
        more => Err(format!("its answer has {} series, not one", more.len())),
    }
}

impl Prometheus {
    /// A server that answers queries there.
    pub fn new(query: Uri) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), query, failing: Arc::default() }
    }

    /// Requests of a model within a time. That nothing is known is logged, and keeps containers.
    pub async fn requests(&self, function: &FunctionKey, model: &str, counter: &str, within_ms: u64) -> Requests {
        let query = query_of(function, model, counter, within_ms);
        let answered = tokio::time::timeout(PATIENCE, self.ask(&query));
        let answered = answered.await.unwrap_or_else(|_| Err("it did not answer within 10 seconds".into()));
        let requests = answered.and_then(|body| read(&body));
        match requests {
            Ok(requests) => {
                self.failing.store(false, Ordering::Relaxed);
                tracing::debug!(%function, query = "model_request_count", ?requests, "scale to zero: the model's requests");
                requests
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%function, server = %self.query, error, "scale to zero: Prometheus does not answer; containers stay until it does");
                }
                Requests::Unknown
            }
        }
    }

    async fn ask(&self, query: &str) -> Result<Bytes, String> {
        let encoded = form_urlencoded::Serializer::new(String::new()).append_pair("query", query).finish();
        let uri: Uri = format!("{}?{encoded}", self.query).parse().map_err(|e| format!("{e}"))?;
        let response = self.client.get(uri).await.map_err(|e| format!("it cannot be reached: {e}"))?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        body.map(|body| body.to_bytes()).map_err(|e| format!("its answer broke off: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guides_query_is_asked_and_its_two_answers_are_told_apart() {
        // SPEC V03 V04 V05 V06, decision D9
        let function = FunctionKey::new("llm-inference", "llama");
        let asked = query_of(&function, "meta/llama-3.1-8b", "vllm:request_success_total", 600_000);
        assert_eq!(
            asked,
            r#"sum(increase(vllm:request_success_total{namespace="llm-inference",model_name="meta/llama-3.1-8b"}[10m]))"#
        );
        let vector = |result: &str| {
            read(format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#).as_bytes())
        };
        assert_eq!(vector(r#"{"metric":{},"value":[1703001234,"42"]}"#), Ok(Requests::Counted(42.0)));
        assert_eq!(vector(r#"{"metric":{},"value":[1703001234,"0"]}"#), Ok(Requests::Counted(0.0)));
        assert_eq!(vector(""), Ok(Requests::Missing));
        for unreadable in [r#"{"metric":{},"value":[1,"NaN"]}"#, r#"{"metric":{}}"#] {
            assert!(vector(unreadable).is_err());
        }
        assert!(read(b"<html>").is_err());
    }
}
