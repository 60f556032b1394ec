//! `authsock doctor`: what keeps a client from its daemon, for people grouped and with the faults last.

use serde_json::json;

use super::args::{Common, Doctor};
use super::output::Output;
use super::{Failure, client_options, exit, runtime};
use crate::client::connect::client_places;
use crate::doctor::{self, Finding, Level, Report};
use crate::kernel::process::Pid;

pub(super) fn doctor(common: &Common, args: &Doctor, output: &Output) -> Result<u8, Failure> {
    let options = client_options(common);
    let places = client_places(&options);
    let report = runtime()?.block_on(doctor::examine(&options, &places, args.pid.map(Pid)));
    let problems = report.count(Level::Problem);
    if output.is_json() {
        output.value(&json!({
            "findings": report.findings(),
            "problems": problems,
            "warnings": report.count(Level::Warning),
        }))?;
    } else {
        for_people(&report, output)?;
    }
    Ok(if problems == 0 { exit::OK } else { exit::FAILED })
}

fn for_people(report: &Report, output: &Output) -> std::io::Result<()> {
    let row = |finding: &Finding| {
        vec![
            finding.area.to_string(),
            finding.level.to_string(),
            finding.id.name().to_owned(),
            format!("{}: {}", finding.subject, finding.says),
        ]
    };
    let at_least = |least: Level| move |finding: &&Finding| finding.level >= least;
    let healthy: Vec<Vec<String>> =
        report.findings().iter().filter(|finding| finding.level < Level::Warning).map(row).collect();
    output.table(&["ABOUT", "LEVEL", "ID", "WHAT WAS FOUND"], &healthy)?;
    let mut faults: Vec<&Finding> = report.findings().iter().filter(at_least(Level::Warning)).collect();
    faults.sort_by_key(|finding| finding.level);
    for finding in faults {
        output.blank()?;
        output.fields(&[
            (level_word(finding.level), format!("{} ({})", finding.subject, finding.id.name())),
            ("what is so", finding.says.clone()),
            ("what to do", finding.remedy.clone().unwrap_or_default()),
        ])?;
    }
    output.blank()?;
    let (problems, warnings) = (report.count(Level::Problem), report.count(Level::Warning));
    output.fields(&[("in all", format!("problems: {problems}, warnings: {warnings}"))])
}

fn level_word(level: Level) -> &'static str {
    if level == Level::Problem { "PROBLEM" } else { "WARNING" }
}
