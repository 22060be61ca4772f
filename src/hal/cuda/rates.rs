//! How fast a GPU is, from what the driver says of its clocks and units.

use super::driver::Context;
use crate::base::DType;
use crate::hal::Rates;
use cudarc::driver::sys::CUdevice_attribute as Attribute;

/// Multiplications and additions that an SM's tensor cores do in a clock, in half precision.
const FROM_90: u64 = 4096;
const BEFORE_90: u64 = 2048;
/// Of the F32 units, which do products of F32.
const SINGLE: u64 = 256;
/// Percent of the peak that this library's kernels reach (one H200: 740 of 1070 TFLOP/s, 500 of 1070 in chunks, 4.2 of 4.9 TB/s), and
/// what a layer takes beside (S8 and S05 decoding one sequence: 25-35 us).
const PRODUCTS: u64 = 69;
const ATTENTION: u64 = 47;
const BYTES: u64 = 86;
const LAYER_NS: u64 = 25_000;

/// `None` when the driver does not tell the clocks.
pub(super) fn of(context: &Context, dtype: DType) -> Option<Rates> {
    let ask = |which| context.attribute(which).ok().map(u64::from).filter(|n| *n > 0);
    let sms = ask(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let clock_khz = ask(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let memory_khz = ask(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bus_bits = ask(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let per_clock = match dtype {
        DType::F32 => SINGLE,
        _ if major >= 9 => FROM_90,
        _ => BEFORE_90,
    };
    let peak = sms * per_clock * clock_khz / 1000;
    Some(Rates {
        products_per_us: peak * PRODUCTS / 100,
        attention_per_us: peak * ATTENTION / 100,
        // Both edges of a clock carry bits.
        bytes_per_us: 2 * memory_khz * (bus_bits / 8) / 1000 * BYTES / 100,
        layer_ns: LAYER_NS,
    })
}
