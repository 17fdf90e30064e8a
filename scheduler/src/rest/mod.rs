//! The REST door: parses, calls the API, renders.

mod adapter;
mod ask;
mod body;
mod budget;
mod calls;
mod claim;
mod cluster;
mod events;
mod forward;
mod functions;
mod gate;
mod govern;
mod guard;
mod interface;
mod lines;
mod logs;
mod map;
mod problem;
mod route;
mod secrets;
mod tokens;
mod web;

use crate::{
    api::Api,
    config::SchedulerConfig,
    peer,
    route::{Peers, Route},
    tls,
};
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, rt, web as actix};
use anyhow::Context;
use route::Routes;
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The path of a function's server in the document.
const WEB: &str = "/web/{ns}/{fn}/{path}";
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// What a door serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// Everything.
    Rest,
    /// Functions' pages alone: an origin of their own.
    Pages,
}

/// Serves REST at `listen`, or functions' pages alone. Answers a handle and the address.
pub fn serve(
    api: Arc<Api>,
    config: &SchedulerConfig,
    listen: SocketAddr,
    door: Door,
) -> anyhow::Result<(ServerHandle, SocketAddr)> {
    let gate = actix::Data::new(gate::Gate::new(config));
    let limits = actix::Data::new(body::Limits { bytes: config.payload_max_bytes });
    let budget = actix::Data::from(budget::Budget::new(config));
    let trusted = Arc::new(tls::rest::client(api.authority())?);
    let shown = api
        .authority()
        .filter(|_| config.rest_tls)
        .map(|authority| tls::rest::server(authority, config))
        .transpose()?;
    let (shared, encrypted) = (actix::Data::from(api), config.rest_tls);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .app_data(gate.clone())
            .app_data(budget.clone())
            .app_data(limits.clone())
            .app_data(actix::Data::new(web::Proxy::new(&trusted, encrypted)))
            .app_data(actix::Data::new(Route::new(shared.clone().into_inner(), Peers::new(&trusted, encrypted))))
            .app_data(actix::Data::new(door))
            .wrap(from_fn(forward::forward))
            .wrap(from_fn(guard::guard))
            .configure(match door {
                Door::Rest => routes,
                Door::Pages => pages,
            })
    })
    .on_connect(|_, data| {
        data.insert(peer::Known::default());
    })
    .workers(config.rest_threads)
    // An answer in two pieces must not wait for the client to acknowledge the first.
    .tcp_nodelay(true)
    .client_request_timeout(HEAD_TIMEOUT)
    // A client that closes its side has gone: what has not started of its call is cancelled.
    .h1_allow_half_closed(false)
    .keep_alive(IDLE_TIMEOUT)
    .shutdown_timeout(5)
    .disable_signals();
    let server = match shown {
        Some(shown) => server.bind_rustls_0_23(listen, shown),
        None => server.bind(listen),
    };
    let server = server.with_context(|| format!("cannot listen on {listen}; is another capstan running there?"))?;
    let address = server.addrs().first().copied().context("no address was bound")?;
    let server = server.run();
    let handle = server.handle();
    rt::spawn(server);
    Ok((handle, address))
}

/// Functions' pages, and nothing else.
fn pages(app: &mut actix::ServiceConfig) {
    web_routes(&mut Routes::of(app));
    app.default_service(actix::to(problem::no_route));
}

fn web_routes(routes: &mut Routes<'_>) {
    routes.alias("/web/{ns}/{fn}", WEB, |r| r.route(actix::to(web::web)));
    routes.alias("/web/{ns}/{fn}/{path:.*}", WEB, |r| r.route(actix::to(web::web)));
}

/// Every route; `openapi` describes the same ones, and says who may use them.
pub fn routes(app: &mut actix::ServiceConfig) {
    register(app);
}

/// The interface's OpenAPI document.
pub fn document() -> serde_json::Value {
    interface::write()
}

/// The patterns of all routes that a server has.
pub fn patterns() -> Vec<&'static str> {
    let mut patterns = Vec::new();
    let _ = App::new().configure(|app| patterns = register(app));
    patterns
}

/// Registers every route, the most used ones first: they are looked through in order.
fn register(app: &mut actix::ServiceConfig) -> Vec<&'static str> {
    let mut routes = Routes::of(app);
    functions_and_calls(&mut routes);
    web_routes(&mut routes);
    cluster_and_models(&mut routes);
    routes.at("/openapi.json", |r| r.get(interface::document));
    routes.at("/", |r| r.get(interface::home));
    let patterns = routes.patterns;
    app.service(actix::resource("/peer/{verb}").route(actix::post().to(ask::peer)));
    app.service(interface::swagger())
        .service(actix::redirect("/docs", "/docs/"))
        .default_service(actix::to(problem::no_route));
    patterns
}

fn functions_and_calls(routes: &mut Routes<'_>) {
    routes.at("/v1/namespaces/{ns}/functions/{fn}/invoke", |r| r.post(calls::invoke));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/spawn", |r| r.post(calls::spawn));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/spawn_map", |r| r.post(calls::spawn_map));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/map", |r| r.post(map::map));
    routes.at("/v1/calls/{id}/results", |r| r.get(calls::results));
    routes.at("/v1/calls/{id}", |r| r.get(calls::get));
    routes.at("/v1/calls/{id}/cancel", |r| r.post(calls::cancel));
    routes.at("/v1/calls/{id}/inputs", |r| r.get(calls::inputs));
    routes.at("/v1/calls/{id}/summary", |r| r.get(calls::summary));
    routes.at("/v1/calls/{id}/inputs/{index}/explain", |r| r.get(calls::explain));
    routes.at("/v1/calls", |r| r.get(calls::list));
    routes.at("/v1/namespaces/{ns}/functions", |r| r.get(functions::list));
    routes.at("/v1/namespaces/{ns}/functions/{fn}", |r| {
        r.get(functions::get).put(functions::deploy).delete(functions::remove)
    });
    routes.at("/v1/namespaces/{ns}/functions/{fn}/autoscaler", |r| r.get(functions::settings).patch(functions::patch));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/revisions", |r| r.get(functions::revisions));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/rollback", |r| r.post(functions::rollback));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/stats", |r| r.get(functions::stats));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/explain", |r| r.get(functions::explain));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/instances", |r| r.get(functions::instances));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/trace", |r| r.get(functions::trace));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/logs", |r| r.get(logs::of_function));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/scaling", |r| r.get(govern::scaling));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/schedule", |r| r.get(govern::schedule));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/schedule/pause", |r| r.post(govern::pause));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/schedule/resume", |r| r.post(govern::resume));
    routes.at("/v1/namespaces/{ns}/functions/{fn}/schedule/run", |r| r.post(govern::run));
}

fn cluster_and_models(routes: &mut Routes<'_>) {
    routes.at("/healthz", |r| r.get(cluster::healthz));
    routes.at("/readyz", |r| r.get(cluster::readyz));
    routes.at("/metrics", |r| r.get(cluster::metrics));
    routes.at("/v1/namespaces", |r| r.get(govern::namespaces));
    routes.at("/v1/namespaces/{ns}", |r| r.get(govern::namespace).put(govern::govern));
    routes.at("/v1/namespaces/{ns}/secrets", |r| r.get(secrets::list));
    routes.at("/v1/namespaces/{ns}/secrets/{name}", |r| r.put(secrets::set).delete(secrets::remove));
    routes.at("/v1/scale-to-zero", |r| r.get(govern::scale_to_zero).put(govern::set_scale_to_zero));
    routes.at("/v1/scale-to-zero/effective", |r| r.get(govern::effective));
    routes.at("/v1/version", |r| r.get(cluster::version));
    routes.at("/v1/schedulers", |r| r.get(cluster::schedulers));
    routes.at("/v1/workers", |r| r.get(cluster::workers));
    routes.at("/v1/workers/{id}", |r| r.get(cluster::worker));
    routes.at("/v1/workers/{id}/drain", |r| r.post(cluster::drain));
    routes.at("/v1/workers/{id}/resume", |r| r.post(cluster::resume));
    routes.at("/v1/workers/{id}/revoke", |r| r.post(cluster::revoke));
    routes.at("/v1/join-tokens", |r| r.post(cluster::invite));
    routes.at("/v1/containers", |r| r.get(cluster::containers));
    routes.at("/v1/containers/{id}/logs", |r| r.get(logs::of_container));
    routes.at("/v1/containers/{id}/stop", |r| r.post(cluster::stop));
    routes.at("/v1/tokens", |r| r.get(tokens::list).post(tokens::make));
    routes.at("/v1/tokens/{id}", |r| r.delete(tokens::revoke));
    routes.at("/v1/events", |r| r.get(events::events));
    routes.at("/api/v1/query", |r| r.get(govern::promql));
    routes.at("/apis/external.metrics.k8s.io/v1beta1", |r| r.get(adapter::external_resources));
    routes.at("/apis/external.metrics.k8s.io/v1beta1/namespaces/{ns}/{metric}", |r| r.get(adapter::external));
    routes.at("/apis/custom.metrics.k8s.io/v1beta2", |r| r.get(adapter::custom_resources));
    routes.at("/apis/custom.metrics.k8s.io/v1beta2/namespaces/{ns}/{resource}/{name}/{metric}", |r| {
        r.get(adapter::custom)
    });
}
