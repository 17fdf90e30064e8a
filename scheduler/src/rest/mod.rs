//! The REST door: parses, calls the API, renders.

mod adapter;
mod body;
mod calls;
mod cluster;
mod forward;
mod functions;
mod gather;
mod govern;
mod guard;
mod map;
mod openapi;
mod problem;
mod tokens;
mod web;

use crate::{api::Api, config::SchedulerConfig, tls};
use actix_web::{App, HttpServer, dev::ServerHandle, middleware::from_fn, web as route};
use anyhow::Context;
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Serves REST. Answers a handle and the address.
pub fn serve(api: Arc<Api>, config: &SchedulerConfig) -> anyhow::Result<(ServerHandle, SocketAddr)> {
    let gate = route::Data::new(guard::Gate::new(config));
    let trusted = Arc::new(tls::rest::client(api.authority())?);
    let shown = api
        .authority()
        .filter(|_| config.rest_tls)
        .map(|authority| tls::rest::server(authority, config))
        .transpose()?;
    let (shared, encrypted) = (route::Data::from(api), config.rest_tls);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(shared.clone())
            .app_data(gate.clone())
            .app_data(route::Data::new(web::Proxy::new(&trusted, encrypted)))
            .wrap(from_fn(forward::forward))
            .wrap(from_fn(guard::guard))
            .configure(routes)
    })
    .workers(config.rest_threads)
    .client_request_timeout(HEAD_TIMEOUT)
    // A client that closes its side has gone: what has not started of its call is cancelled.
    .h1_allow_half_closed(false)
    .keep_alive(IDLE_TIMEOUT)
    .shutdown_timeout(5)
    .disable_signals();
    let server = match shown {
        Some(shown) => server.bind_rustls_0_23(config.listen, shown),
        None => server.bind(config.listen),
    };
    let server =
        server.with_context(|| format!("cannot listen on {}; is another capstan running there?", config.listen))?;
    let address = server.addrs().first().copied().context("no address was bound")?;
    let server = server.run();
    let handle = server.handle();
    actix::spawn(server);
    Ok((handle, address))
}

/// Every route; `openapi` describes the same ones.
pub fn routes(app: &mut route::ServiceConfig) {
    app.service(openapi::swagger())
        .service(route::redirect("/docs", "/docs/"))
        .service(route::resource("/openapi.json").get(openapi::document))
        .service(route::resource("/").get(openapi::home))
        .service(route::resource("/healthz").get(cluster::healthz))
        .service(route::resource("/readyz").get(cluster::readyz))
        .service(route::resource("/metrics").get(cluster::metrics))
        .service(route::resource("/api/v1/query").get(govern::promql))
        .service(
            route::scope("/apis")
                .service(route::resource("/external.metrics.k8s.io/v1beta1").get(adapter::external_resources))
                .service(
                    route::resource("/external.metrics.k8s.io/v1beta1/namespaces/{ns}/{metric}").get(adapter::external),
                )
                .service(route::resource("/custom.metrics.k8s.io/v1beta2").get(adapter::custom_resources))
                .service(
                    route::resource("/custom.metrics.k8s.io/v1beta2/namespaces/{ns}/{resource}/{name}/{metric}")
                        .get(adapter::custom),
                ),
        )
        .service(
            route::scope("/v1")
                .service(
                    route::scope("/namespaces/{ns}/functions")
                        .service(route::resource("").get(functions::list))
                        .service(
                            route::resource("/{fn}")
                                .get(functions::get)
                                .put(functions::deploy)
                                .delete(functions::remove),
                        )
                        .service(route::resource("/{fn}/autoscaler").get(functions::settings).patch(functions::patch))
                        .service(route::resource("/{fn}/stats").get(functions::stats))
                        .service(route::resource("/{fn}/explain").get(functions::explain))
                        .service(route::resource("/{fn}/instances").get(functions::instances))
                        .service(route::resource("/{fn}/trace").get(functions::trace))
                        .service(route::resource("/{fn}/scaling").get(govern::scaling))
                        .service(route::resource("/{fn}/schedule").get(govern::schedule))
                        .service(route::resource("/{fn}/schedule/pause").post(govern::pause))
                        .service(route::resource("/{fn}/schedule/resume").post(govern::resume))
                        .service(route::resource("/{fn}/schedule/run").post(govern::run))
                        .service(route::resource("/{fn}/invoke").post(calls::invoke))
                        .service(route::resource("/{fn}/spawn").post(calls::spawn))
                        .service(route::resource("/{fn}/spawn_map").post(calls::spawn_map))
                        .service(route::resource("/{fn}/map").post(map::map)),
                )
                .service(route::resource("/namespaces").get(govern::namespaces))
                .service(route::resource("/namespaces/{ns}").get(govern::namespace).put(govern::govern))
                .service(route::resource("/scale-to-zero").get(govern::scale_to_zero).put(govern::set_scale_to_zero))
                .service(route::resource("/scale-to-zero/effective").get(govern::effective))
                .service(route::resource("/calls").get(calls::list))
                .service(route::resource("/calls/{id}").get(calls::get))
                .service(route::resource("/calls/{id}/results").get(calls::results))
                .service(route::resource("/calls/{id}/cancel").post(calls::cancel))
                .service(route::resource("/calls/{id}/inputs/{index}/explain").get(calls::explain))
                .service(route::resource("/schedulers").get(cluster::schedulers))
                .service(route::resource("/workers").get(cluster::workers))
                .service(route::resource("/workers/{id}").get(cluster::worker))
                .service(route::resource("/workers/{id}/drain").post(cluster::drain))
                .service(route::resource("/workers/{id}/resume").post(cluster::resume))
                .service(route::resource("/workers/{id}/revoke").post(cluster::revoke))
                .service(route::resource("/join-tokens").post(cluster::invite))
                .service(route::resource("/containers").get(cluster::containers))
                .service(route::resource("/containers/{id}/logs").get(cluster::logs))
                .service(route::resource("/containers/{id}/stop").post(cluster::stop))
                .service(route::resource("/tokens").get(tokens::list).post(tokens::make))
                .service(route::resource("/tokens/{id}").delete(tokens::revoke))
                .service(route::resource("/events").get(cluster::events)),
        )
        .service(route::resource(["/web/{ns}/{fn}", "/web/{ns}/{fn}/{path:.*}"]).to(web::web))
        .default_service(route::to(problem::no_route));
}
