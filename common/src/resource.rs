//! What a container asks for and a worker has, as integers.

use serde::{Deserialize, Serialize};

/// CPU in thousandths of a core; users write cores as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cpu {
    /// Thousandths of a core.
    pub milli: u32,
}

impl Serialize for Cpu {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(f64::from(self.milli) / 1000.0)
    }
}

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let cores = f64::deserialize(d)?;
        if !(0.001..=100_000.0).contains(&cores) {
            return Err(serde::de::Error::custom(format!("{cores} cores: must be between 0.001 and 100000")));
        }
        Ok(Self { milli: (cores * 1000.0).round() as u32 })
    }
}

/// Resources that add up: what is requested, held, or free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Mebibytes of memory.
    pub memory_mib: u64,
    /// Whole GPUs.
    #[serde(default)]
    pub gpus: u64,
}

impl Amount {
    /// Whether `self` is enough for `other`.
    pub fn covers(self, other: Self) -> bool {
        self.cpu_milli >= other.cpu_milli && self.memory_mib >= other.memory_mib && self.gpus >= other.gpus
    }

    /// The same with so many GPUs.
    pub fn with_gpus(self, count: u32) -> Self {
        Self { gpus: u64::from(count), ..self }
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli + other.cpu_milli,
            memory_mib: self.memory_mib + other.memory_mib,
            gpus: self.gpus + other.gpus,
        }
    }

    /// What is left of `self` without `other`; never below zero.
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            gpus: self.gpus.saturating_sub(other.gpus),
        }
    }

    /// One of so many equal parts of it, rounded down; all of it for none.
    pub fn part(self, of: u32) -> Self {
        let of = u64::from(of.max(1));
        Self { cpu_milli: self.cpu_milli / of, memory_mib: self.memory_mib / of, gpus: self.gpus / of }
    }

    /// How many of `one` it holds.
    pub fn holds(self, one: Self) -> u32 {
        let parts = |all: u64, one: u64| all.checked_div(one).unwrap_or(u64::MAX);
        let most = parts(self.cpu_milli, one.cpu_milli)
            .min(parts(self.memory_mib, one.memory_mib))
            .min(parts(self.gpus, one.gpus));
        u32::try_from(most).unwrap_or(u32::MAX)
    }

    /// So many of it.
    pub fn times(self, count: u32) -> Self {
        let count = u64::from(count);
        Self { cpu_milli: self.cpu_milli * count, memory_mib: self.memory_mib * count, gpus: self.gpus * count }
    }
}
