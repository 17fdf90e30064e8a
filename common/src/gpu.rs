//! GPUs: what a worker has, what a function asks for, and which card answers which wish (SPEC §2.7).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// One GPU of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Gpu {
    /// What its driver knows it by, also after a restart.
    pub uuid: String,
    /// Its model, like `H100` or `A100-80GB`.
    pub model: String,
    /// Its memory in mebibytes; 0 if it is not known.
    pub memory_mib: u64,
}

/// Names of a GPU that say who made it, how it is plugged in, or what its memory is made of, and not which model it is.
const NOISE: [&str; 18] = [
    "NVIDIA",
    "TESLA",
    "GEFORCE",
    "QUADRO",
    "GRAPHICS",
    "GPU",
    "DEVICE",
    "PCIE",
    "NVL",
    "HBM2",
    "HBM2E",
    "HBM3",
    "HBM3E",
    "BLACKWELL",
    "GENERATION",
    "EDITION",
    "SERVER",
    "WORKSTATION",
];

/// The model that a driver's name of a GPU stands for: `NVIDIA A100-SXM4-80GB` is an `A100-80GB`.
pub fn model(name: &str, memory_mib: u64) -> String {
    let upper = name.to_ascii_uppercase();
    let words = upper.split(|c: char| c.is_whitespace() || c == '-').filter(|word| !word.is_empty());
    let is_memory = |word: &str| word.strip_suffix("GB").is_some_and(|n| n.parse::<u32>().is_ok());
    let is_noise = |word: &str| NOISE.contains(&word) || word.starts_with("SXM") || is_memory(word);
    let model = words.filter(|word| !is_noise(word)).collect::<Vec<_>>().join("-");
    match model.as_str() {
        // Of these alone both sizes are common, and asked for by their names.
        "A100" if memory_mib > 60_000 => "A100-80GB".into(),
        "A100" => "A100-40GB".into(),
        "" => upper.trim().replace(char::is_whitespace, "-"),
        _ => model,
    }
}

/// Cards that may serve a wish for another: better ones of its family, or the same by another name.
const SERVES: [(&str, &[&str]); 7] = [
    ("A100", &["A100-40GB", "A100-80GB"]),
    ("A100-40GB", &["A100-80GB"]),
    ("A10", &["A10G"]),
    ("A10G", &["A10"]),
    ("L40", &["L40S"]),
    ("H100", &["H200"]),
    ("B200+", &["B200", "B300"]),
];

/// The most of a card that one container may ask for, which is what one machine has of it.
fn most(model: &str) -> u32 {
    if matches!(model, "A10" | "A10G") { 4 } else { 8 }
}

/// Preferences that a function may have.
pub const PREFERENCES: usize = 8;

/// GPUs of one model, and how many: `H100`, `H100:2`, `A100-80GB`, `H100!` (no better one), `B200+` (or newer), `any`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuRequest {
    /// The model, in capital letters, with `!` or `+` where it was written so; `ANY` for any.
    pub model: Arc<str>,
    /// How many, at least one.
    pub count: u32,
}

impl FromStr for GpuRequest {
    type Err = String;
    fn from_str(written: &str) -> Result<Self, String> {
        let (model, count) = written.split_once(':').unwrap_or((written, "1"));
        let model = model.trim().to_ascii_uppercase();
        let plain = model.trim_end_matches(['!', '+']);
        let clean = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
        if plain.is_empty() || !plain.chars().all(clean) || model.len() > plain.len() + 1 {
            return Err(format!("`{written}` is not a GPU: write a model and a count, like \"H100\" or \"H100:2\""));
        }
        if matches!(plain, "NONE" | "AUTO") {
            return Err(format!("`{written}` is not a GPU: leave `gpu` out for none, or write \"any\""));
        }
        if plain == "ANY" && model != plain {
            return Err(format!("`{written}`: any GPU is written \"any\", with a count where it is more than one"));
        }
        if model.ends_with('+') && !SERVES.iter().any(|(wish, _)| *wish == model) {
            return Err(format!(
                "`{written}`: what is newer is known of \"B200+\" alone; list models by preference instead"
            ));
        }
        let most = most(plain);
        let count = count.parse().ok().filter(|count| (1..=most).contains(count)).ok_or_else(|| {
            format!("`{written}`: the count must be a whole number from 1 to {most}, which is what one machine has")
        })?;
        Ok(Self { model: model.into(), count })
    }
}

impl TryFrom<String> for GpuRequest {
    type Error = String;
    fn try_from(written: String) -> Result<Self, String> {
        written.parse()
    }
}

impl From<GpuRequest> for String {
    fn from(request: GpuRequest) -> Self {
        request.to_string()
    }
}

impl fmt::Display for GpuRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.count {
            1 => f.write_str(&self.model),
            count => write!(f, "{}:{count}", self.model),
        }
    }
}

impl GpuRequest {
    /// What a spec of an earlier version asks for, which may be written as no spec of today is: then no card serves it.
    pub fn of(written: &str) -> Self {
        written.parse().unwrap_or_else(|_| Self { model: format!("`{written}`").into(), count: 1 })
    }

    /// Whether a card of that model is what is asked for.
    pub fn is_named(&self, model: &str) -> bool {
        self.model.trim_end_matches('!').eq_ignore_ascii_case(model)
    }

    /// Whether a card of that model will do.
    pub fn takes(&self, model: &str) -> bool {
        if model.is_empty() {
            return false;
        }
        let better = || SERVES.iter().find(|(wish, _)| *wish == &*self.model).map_or(&[][..], |(_, cards)| cards);
        &*self.model == "ANY" || self.is_named(model) || better().iter().any(|card| card.eq_ignore_ascii_case(model))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drivers_names_become_the_names_that_users_write() {
        for (name, memory_mib, expected) in [
            ("NVIDIA H100 80GB HBM3", 81_559, "H100"),
            ("NVIDIA H100 NVL", 95_830, "H100"),
            ("NVIDIA A100-SXM4-80GB", 81_920, "A100-80GB"),
            ("NVIDIA A100-PCIE-40GB", 40_960, "A100-40GB"),
            ("Tesla T4", 15_360, "T4"),
            ("NVIDIA L4", 23_034, "L4"),
            ("NVIDIA L40S", 46_068, "L40S"),
            ("NVIDIA A10G", 23_028, "A10G"),
            ("NVIDIA B200", 183_359, "B200"),
            ("NVIDIA GeForce RTX 4090", 24_564, "RTX-4090"),
            ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887, "RTX-PRO-6000"),
            ("NVIDIA RTX 6000 Ada Generation", 49_140, "RTX-6000-ADA"),
            ("GPU", 1, "GPU"),
        ] {
            assert_eq!(model(name, memory_mib), expected, "{name}");
        }
    }

    #[test]
    fn a_wish_is_served_by_its_card_or_a_better_one_of_the_family_unless_it_says_exactly() {
        let takes = |wish: &str, card: &str| wish.parse::<GpuRequest>().unwrap().takes(card);
        for (wish, card) in [
            ("H100", "H100"),
            ("h100:2", "H100"),
            ("H100", "H200"),
            ("A100", "A100-40GB"),
            ("A100", "A100-80GB"),
            ("A100-40GB", "A100-80GB"),
            ("A10", "A10G"),
            ("any", "RTX-4090"),
            ("B200+", "B300"),
            ("B200+", "B200"),
            ("H100!", "H100"),
        ] {
            assert!(takes(wish, card), "{wish} on {card}");
        }
        for (wish, card) in [
            ("H100!", "H200"),
            ("H200", "H100"),
            ("A100-80GB", "A100-40GB"),
            ("L4", "L40S"),
            ("any", ""),
            ("B200", "B300"),
        ] {
            assert!(!takes(wish, card), "{wish} on {card}");
        }
    }

    #[test]
    fn a_wish_that_is_none_says_what_is_wrong() {
        for (wish, part) in [
            ("", "is not a GPU"),
            (":2", "is not a GPU"),
            ("H100!!", "is not a GPU"),
            ("H 100", "is not a GPU"),
            ("H100:0", "from 1 to 8"),
            ("H100:9", "from 1 to 8"),
            ("H100:x", "from 1 to 8"),
            ("A10G:5", "from 1 to 4"),
            ("H100+", "B200+"),
            ("any!", "any GPU is written"),
            ("none", "leave `gpu` out"),
        ] {
            let error = wish.parse::<GpuRequest>().unwrap_err();
            assert!(error.contains(part), "{wish}: {error}");
        }
        assert!(!GpuRequest::of("H100 80GB").takes("H100"), "what cannot be read is served by none");
        assert_eq!("h100:2".parse::<GpuRequest>().unwrap().to_string(), "H100:2");
        assert_eq!("A10:1".parse::<GpuRequest>().unwrap().to_string(), "A10");
    }
}
