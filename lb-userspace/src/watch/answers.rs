//! Tells when the API server answers: a watch that works is silent.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{Request, Response};
use tokio::sync::mpsc::UnboundedSender;
use tower::{Layer, Service};

use super::What;

/// Puts [`Answers`] around a client.
#[derive(Clone, Debug)]
pub(super) struct AnswersLayer(pub(super) UnboundedSender<What>);

impl<S> Layer<S> for AnswersLayer {
    type Service = Answers<S>;

    fn layer(&self, inner: S) -> Answers<S> {
        Answers {
            inner,
            sender: self.0.clone(),
        }
    }
}

/// A client that tells of every good answer to a list or watch.
#[derive(Clone, Debug)]
pub(super) struct Answers<S> {
    inner: S,
    sender: UnboundedSender<What>,
}

impl<S, A, B> Service<Request<A>> for Answers<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let path = request.uri().path();
        let what = What::ALL.into_iter().find(|what| path == what.path());
        let sender = self.sender.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            let answered = what.filter(|_| response.status().is_success());
            if answered.is_some_and(|what| sender.send(what).is_err()) {
                tracing::debug!("nothing is followed any more");
            }
            Ok(response)
        })
    }
}
