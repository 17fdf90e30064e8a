//! Containers over time as a picture: lines of blocks for a terminal, and SVG.

use crate::Outcome;
use std::fmt::Write;

const WIDTH: usize = 900;
const HEIGHT: usize = 280;
const MARGIN: usize = 40;
const COLOURS: [&str; 4] = ["#4c6ef5", "#f76707", "#2b8a3e", "#c2255c"];

/// One line of blocks, the highest being `most`.
pub fn blocks(counts: &[u32], most: u32) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let block = |count: &u32| BLOCKS[(u64::from(*count) * 8).div_ceil(u64::from(most.max(1))).min(8) as usize];
    counts.iter().map(block).collect()
}

/// Outcomes side by side, each with its name.
pub fn svg(outcomes: &[(&str, &Outcome)]) -> String {
    let most = outcomes.iter().map(|(_, o)| o.peak).max().unwrap_or(0).max(1);
    let slices = WIDTH - 2 * MARGIN;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\
         <text x=\"{MARGIN}\" y=\"20\">containers over time, at most {most}</text>"
    );
    let floor = HEIGHT - MARGIN;
    for (n, (name, outcome)) in outcomes.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let points = outcome.over_time(slices).into_iter().enumerate().map(|(x, count)| {
            let height = count as usize * (floor - MARGIN) / most as usize;
            format!("{},{}", MARGIN + x, floor - height)
        });
        let points: Vec<_> = points.collect();
        let label = MARGIN + 260 + n * 160;
        let _ = write!(
            text,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <text x=\"{label}\" y=\"20\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            escape(name)
        );
    }
    let seconds = outcomes.iter().map(|(_, o)| o.span.1.since_us(o.span.0) / 1_000_000).max().unwrap_or(0);
    let _ = writeln!(
        text,
        "<line x1=\"{MARGIN}\" y1=\"{floor}\" x2=\"{}\" y2=\"{floor}\" stroke=\"black\"/>\
         <text x=\"{MARGIN}\" y=\"{}\">0 s</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{seconds} s</text></svg>",
        WIDTH - MARGIN,
        floor + 18,
        WIDTH - MARGIN,
        floor + 18
    );
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
