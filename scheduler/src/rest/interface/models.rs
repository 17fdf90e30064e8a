//! Models: scaled to zero, and what Prometheus and Kubernetes ask of them.

use super::{
    functions::SPEC_BYTES,
    operation::{JSON, Operation, Scope},
    shape::Shape,
    shapes::ScaleToZeroConfig,
    tagged,
};
use capstan_verb::{access::Role, model};
use serde_json::json;

const CONFIG: &str = "/v1/scale-to-zero";

fn config() -> [Operation; 3] {
    let shape = || Shape::of::<ScaleToZeroConfig>();
    let example = json!({"default": {"enable_scale_to_zero": true, "retention_period": "15m"}});
    [
        Operation::of::<model::ScaleToZero>("GET", CONFIG, "getScaleToZero", "The scale-to-zero configuration", "")
            .answers(200, "entries by key", JSON, shape())
            .example(example.clone()),
        Operation::of::<model::SetScaleToZero>(
            "PUT",
            CONFIG,
            "setScaleToZero",
            "Replaces the scale-to-zero configuration",
            "",
        )
        .about("Entries that cannot hold are left out, and the header Capstan-Warnings names them.")
        .takes(shape(), example, SPEC_BYTES)
        .takes_as("application/yaml", Shape::text(), None, SPEC_BYTES)
        .answers(200, "entries by key", JSON, shape()),
        Operation::of::<model::Effective>(
            "GET",
            "/v1/scale-to-zero/effective",
            "getEffectiveScaleToZero",
            "What holds for one model, and which entry decided each field",
            "what holds",
        )
        .query("model_id", json!({"type": "string"}), "the model")
        .required()
        .query("namespace", json!({"type": "string", "default": "default"}), "its namespace"),
    ]
}

fn prometheus() -> [Operation; 1] {
    let text = || json!({"type": "string"});
    [Operation::of::<model::Query>(
        "GET",
        "/api/v1/query",
        "queryPrometheus",
        "Prometheus' instant query, for the queries that are asked of models",
        "",
    )
    .query("query", text(), "PromQL")
    .required()
    .query("time", text(), "for when; the present without it")
    .query("timeout", text(), "taken and not needed: the answer is there at once")
    .answers(200, "Prometheus' answer", JSON, Shape::foreign("Prometheus' instant vector"))
    .refuses_as(Shape::foreign("Prometheus' error"))]
}

fn kubernetes() -> [Operation; 4] {
    let text = || json!({"type": "string"});
    let (everybody, namespace) = ((Role::Read, Scope::List), (Role::Read, Scope::Namespace));
    [
        Operation::plain(
            "GET",
            "/apis/external.metrics.k8s.io/v1beta1",
            "listExternalMetrics",
            "The external metrics that there are, for Kubernetes",
            everybody,
        )
        .answers(200, "the list", JSON, Shape::foreign("APIResourceList")),
        Operation::plain(
            "GET",
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{ns}/{metric}",
            "getExternalMetric",
            "A gauge of models as an external metric of Kubernetes, for an HPA",
            namespace,
        )
        .query("labelSelector", text(), "labels of the series, like variant_name=llama-8b")
        .query("metricLabelSelector", text(), "not used here")
        .answers(200, "values", JSON, Shape::foreign("ExternalMetricValueList"))
        .refuses_as(Shape::foreign("Status")),
        Operation::plain(
            "GET",
            "/apis/custom.metrics.k8s.io/v1beta2",
            "listCustomMetrics",
            "The custom metrics that there are, for Kubernetes",
            everybody,
        )
        .answers(200, "the list", JSON, Shape::foreign("APIResourceList")),
        Operation::plain(
            "GET",
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{ns}/{resource}/{name}/{metric}",
            "getCustomMetric",
            "A gauge of a function with a model as a custom metric of Kubernetes, for an HPA",
            namespace,
        )
        .query("labelSelector", text(), "with *: labels of the series")
        .query("metricLabelSelector", text(), "labels of the series")
        .answers(200, "values", JSON, Shape::foreign("MetricValueList"))
        .refuses_as(Shape::foreign("Status")),
    ]
}

pub fn operations() -> Vec<Operation> {
    [tagged("models", config().into_iter().chain(prometheus())), tagged("kubernetes", kubernetes())]
        .into_iter()
        .flatten()
        .collect()
}
