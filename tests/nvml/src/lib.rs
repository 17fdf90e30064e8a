//! The few calls of NVIDIA's driver library that Capstan makes, answered from the environment: `FAKE_NVML` lists the machine's
//! cards as `name|uuid|MiB`, with `|mig` behind those that are cut into slices, between semicolons.
//!
//! Each call follows `nvml.h`: the caller gives pointers that are good for what is written, and lengths that hold.

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlMemory_v2_t, nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE as INSUFFICIENT_SIZE,
    nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT as INVALID, nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED as NOT_SUPPORTED,
    nvmlReturn_enum_NVML_SUCCESS as SUCCESS, nvmlReturn_t,
};
use std::ffi::{c_char, c_uint};

/// One card: name, uuid, mebibytes, and whether it is cut into slices.
type Card = (String, String, u64, bool);

fn cards() -> Vec<Card> {
    let card = |text: &str| {
        let mut parts = text.split('|').map(str::to_owned);
        let (name, uuid, memory) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
        Some((name, uuid, memory, parts.next().is_some()))
    };
    std::env::var("FAKE_NVML").unwrap_or_default().split(';').filter_map(card).collect()
}

/// A handle is the card's number from one.
fn card(device: nvmlDevice_t) -> Option<Card> {
    cards().into_iter().nth((device as usize).checked_sub(1)?)
}

/// # Safety
/// `to` is good for `length` bytes.
unsafe fn write(text: &str, to: *mut c_char, length: c_uint) -> nvmlReturn_t {
    if text.len() >= length as usize {
        return INSUFFICIENT_SIZE;
    }
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        *to.add(text.len()) = 0;
    }
    SUCCESS
}

/// Always possible.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    SUCCESS
}

/// The same with flags.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_: c_uint) -> nvmlReturn_t {
    SUCCESS
}

/// Nothing is to be undone.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    SUCCESS
}

/// How many cards there are.
///
/// # Safety
/// As `nvml.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    unsafe { *count = cards().len() as c_uint };
    SUCCESS
}

/// A card's handle.
///
/// # Safety
/// As `nvml.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) -> nvmlReturn_t {
    if index as usize >= cards().len() {
        return INVALID;
    }
    unsafe { *device = (index as usize + 1) as nvmlDevice_t };
    SUCCESS
}

/// A card's name.
///
/// # Safety
/// As `nvml.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    card(device).map_or(INVALID, |card| unsafe { write(&card.0, name, length) })
}

/// A card's uuid.
///
/// # Safety
/// As `nvml.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    card(device).map_or(INVALID, |card| unsafe { write(&card.1, uuid, length) })
}

/// A card's memory, all of it free.
///
/// # Safety
/// As `nvml.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, info: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    let Some((_, _, mebibytes, _)) = card(device) else { return INVALID };
    unsafe {
        (*info).total = mebibytes << 20;
        (*info).free = mebibytes << 20;
        (*info).reserved = 0;
        (*info).used = 0;
    }
    SUCCESS
}

/// Whether a card is cut into slices; those that are not do not know the question.
///
/// # Safety
/// As `nvml.h` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    match card(device) {
        Some((_, _, _, true)) => {
            unsafe {
                *current = 1;
                *pending = 1;
            }
            SUCCESS
        }
        Some(_) => NOT_SUPPORTED,
        None => INVALID,
    }
}
