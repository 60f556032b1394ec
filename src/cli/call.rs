//! `authsock call`: any method, for scripts.

use std::io::Read;

use serde_json::Value;

use super::args::Call;
use super::output::Output;
use super::{Failure, exit};
use crate::client::Client;

/// Refuses what comes to nothing with a connection that ends with the answer, before there is one.
pub(super) fn refuse_fruitless(args: &Call) -> Result<(), Failure> {
    match args.method.as_str() {
        method @ ("events.subscribe" | "events.unsubscribe") => {
            let words = format!(
                "{method} is about a connection that stays, and this one ends with the answer: `authsock subscribe SUBJECT` shows what comes"
            );
            Err(Failure::new(exit::USAGE, words))
        }
        _ => Ok(()),
    }
}

pub(super) async fn call(client: &mut Client, args: &Call, output: &Output) -> Result<(), Failure> {
    let text = match args.params.as_deref() {
        None => None,
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            Some(text)
        }
        Some(text) => Some(text.to_owned()),
    };
    let not_json = |error| Failure::new(exit::USAGE, format!("PARAMS is not JSON: {error}"));
    let params: Option<Value> = text.map(|text| serde_json::from_str(&text).map_err(not_json)).transpose()?;
    let answer = client.call(&args.method, params.as_ref()).await?;
    Ok(output.value(&answer)?)
}
