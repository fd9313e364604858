//! The addresses of the server. Whatever is told or done needs the key; the page itself says nothing.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};

use crate::refusal::Refusal;
use crate::{Shared, chat, key, look, recipe, runs};

/// The page's files.
const FILES: [(&str, &str, &str); 10] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("page/style.css")),
    ("/page.js", SCRIPT, include_str!("page/page.js")),
    ("/recipe.js", SCRIPT, include_str!("page/recipe.js")),
    ("/form.js", SCRIPT, include_str!("page/form.js")),
    ("/look.js", SCRIPT, include_str!("page/look.js")),
    ("/runs.js", SCRIPT, include_str!("page/runs.js")),
    ("/chat.js", SCRIPT, include_str!("page/chat.js")),
    ("/plot.js", SCRIPT, include_str!("page/plot.js")),
    ("/words.js", SCRIPT, include_str!("page/words.js")),
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What a page of this server may do: run its own scripts, and nothing from elsewhere.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'";

/// All addresses.
pub fn router(shared: Arc<Shared>) -> Router {
    let api = Router::new()
        .route("/api/form", get(recipe::form))
        .route("/api/recipe", post(recipe::draft))
        .route("/api/file", get(recipe::read).put(recipe::write))
        .route("/api/suggestions", get(recipe::suggestions))
        .route("/api/look", post(look::look))
        .route("/api/runs", get(runs::list).post(runs::start))
        .route("/api/runs/{name}", get(runs::show).delete(runs::forget))
        .route("/api/runs/{name}/stop", post(runs::stop))
        .route("/api/runs/{name}/resume", post(runs::resume))
        .route("/api/runs/{name}/recipe", get(runs::recipe))
        .route("/api/runs/{name}/answers", get(runs::answers))
        .route("/api/compare", get(runs::compare))
        .route("/api/chat", get(chat::state))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), check_key));
    let page = FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, "no-cache"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ];
        router.route(path, get(move || async move { (headers, text) }))
    });
    page.route("/chat/{key}/", any(chat::pass_on))
        .route("/chat/{key}/{*path}", any(chat::pass_on))
        .merge(api)
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(shared)
}

async fn unknown(request: Request) -> Refusal {
    Refusal::none(format!("{} {}", request.method(), request.uri().path()))
}

async fn check_key(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    if !key::shows(request.headers(), &shared.options.key) {
        let reason = "the page was opened without its key: use the address that `sft webui` printed";
        return Refusal(StatusCode::UNAUTHORIZED, reason.into()).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that the page says by a name: what jobs do, what runs came to, headings of the form.
    const NAMED: [&str; 26] = [
        "sft train",
        "sft predict",
        "sft export",
        "sft serve",
        "Start training",
        "Start answering",
        "Start merging",
        "Data, steps, memory",
        "What is trained of the rows",
        "Check the data",
        "What fits",
        "running",
        "starting",
        "waiting",
        "done",
        "interrupted",
        "failed",
        "stopped",
        "taken back",
        "ended unseen",
        "ended without a word",
        "Model",
        "Data",
        "Training",
        "Results",
        "Export",
    ];

    #[test]
    fn every_word_of_the_page_has_a_translation() {
        let words = FILES.iter().find(|(path, ..)| *path == "/words.js").unwrap().2;
        let mut said: Vec<&str> = NAMED.to_vec();
        for (_, _, text) in FILES {
            for (before, after) in [("say('", '\''), ("data-say=\"", '"')] {
                said.extend(text.split(before).skip(1).filter_map(|rest| rest.split(after).next()));
            }
        }
        said.retain(|text| !words.contains(&format!("\n  '{text}': ")));
        assert!(said.is_empty(), "without a line in words.js: {said:#?}");
    }

    #[test]
    fn no_translation_is_left_over() {
        let others: String =
            FILES.iter().filter(|(path, ..)| *path != "/words.js").map(|(.., text)| *text).collect();
        let words = FILES.iter().find(|(path, ..)| *path == "/words.js").unwrap().2;
        let known = words
            .lines()
            .filter_map(|line| line.strip_prefix("  '")?.split_once("': ").map(|(text, _)| text));
        let is_said = |text: &&str| {
            others.contains(&format!("'{text}'")) || others.contains(&format!("say=\"{text}\""))
        };
        let headings = crate::recipe::ESSENTIALS.map(|(about, _)| about);
        let left: Vec<&str> = known
            .filter(|text| !is_said(text) && !NAMED.contains(text) && !headings.contains(text))
            .collect();
        assert!(left.is_empty(), "nowhere on the page: {left:#?}");
    }
}
