//! Products with `bfmmla`: two rows by two columns over four `bf16` along `k`, summed in `f32`.
//!
//! A register holds the four values of each of two rows, or of two columns, and another the 2×2 sums. Rows are read as they
//! are stored, eight bytes of each; two units of four columns of a panel make two registers of columns. That is ten moves
//! for the 24 products of a tile. Unless a process asks for the extended behaviour, the instruction takes and
//! leaves subnormal numbers as zero and rounds a sum's last bit to odd (Arm's manual, `BFAdd`).
//!
//! The compiler has no stable intrinsic for it, so it is written as assembly.

use std::arch::aarch64::*;
use std::arch::asm;

use half::bf16;

use super::kernel::{MicroKernel, Rows, Stretch, Unit};
use super::neon::Lanes4;
use crate::Isa;

/// Pairs of rows of a tile.
const ROWS: usize = 6;
/// Pairs of columns of a tile.
const COLUMNS: usize = 4;
/// Units of a row that lie side by side.
const RUN: usize = 16;

/// Tiles of 12×8 in 2×2 sums: 24 registers of sums, four of columns, one of rows.
pub(super) struct NeonBf16;

impl MicroKernel for NeonBf16 {
    type Packed = bf16;
    type Lanes = Lanes4;
    type Session = ();
    const ISA: Isa = Isa::Neon;
    const MR: usize = 2 * ROWS;
    const NR: usize = 2 * COLUMNS;
    const RUN: usize = RUN;
    const PASS: usize = 512;
    const DEPTH: usize = 1024;
    const A_PANELS: usize = 16;
    const B_PANELS: usize = 16;

    unsafe fn begin() {}

    unsafe fn tile(stretches: &[Stretch], tile: *mut f32, add: bool) {
        // SAFETY: the CPU has the instructions, by the caller's promise, which is passed on.
        unsafe { sums(stretches, tile, add) }
    }
}

/// 2×2 sums of all pairs of rows and of columns.
type Sums = [[float32x4_t; COLUMNS]; ROWS];

/// The tile over all stretches.
#[target_feature(enable = "neon,bf16")]
unsafe fn sums(stretches: &[Stretch], tile: *mut f32, add: bool) {
    let mut sums: Sums = [[vdupq_n_f32(0.0); COLUMNS]; ROWS];
    // SAFETY: by the promise made to `tile`, which holds `2·ROWS` rows of `2·COLUMNS` floats.
    unsafe {
        if add {
            for (i, sums) in sums.iter_mut().enumerate() {
                for (j, sums) in sums.as_chunks_mut().0.iter_mut().enumerate() {
                    let [upper, lower] = rows(tile, i, j);
                    *sums = exchange([vld1q_f32(upper), vld1q_f32(lower)]);
                }
            }
        }
        for stretch in stretches.iter().filter(|stretch| stretch.units > 0) {
            add_stretch(&mut sums, stretch);
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sums) in sums.as_chunks().0.iter().enumerate() {
                let ([upper, lower], [a, b]) = (rows(tile, i, j), exchange(*sums));
                vst1q_f32(upper, a);
                vst1q_f32(lower, b);
            }
        }
    }
}

/// Four sums of each row of the pair `i`, those of the pairs of columns `2j` and `2j + 1`.
#[inline(always)]
fn rows(tile: *mut f32, i: usize, j: usize) -> [*mut f32; 2] {
    let upper = tile.wrapping_add(2 * COLUMNS * 2 * i + 4 * j);
    [upper, upper.wrapping_add(2 * COLUMNS)]
}

/// `[a₀ a₁], [b₀ b₁]` → `[a₀ b₀], [a₁ b₁]`, in halves of a register: two rows of four sums as two registers of 2×2, and
/// the other way.
#[target_feature(enable = "neon")]
#[inline]
fn exchange([a, b]: [float32x4_t; 2]) -> [float32x4_t; 2] {
    let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    [vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b))]
}

/// Adds a stretch that is not empty. All registers are named: the compiler would move sums to memory and back.
///
/// # Safety
/// That of `tile`.
#[target_feature(enable = "neon,bf16")]
unsafe fn add_stretch(sums: &mut Sums, stretch: &Stretch) {
    // Units from a row and from a run to the next.
    let (start, row, run) = match stretch.a {
        Rows::Packed(start) => (start, RUN, 2 * ROWS * RUN),
        Rows::Stored { start, row } => (start, row, RUN),
    };
    let bytes = |units: usize| units * size_of::<Unit>();
    // SAFETY: by the promise made to `tile`, rows and columns hold whole runs, which is how far they are read, and
    // `sums` are 24 registers.
    unsafe {
        asm!(
            "ldp q8, q9, [{sums}]", "ldp q10, q11, [{sums}, #32]",
            "ldp q12, q13, [{sums}, #64]", "ldp q14, q15, [{sums}, #96]",
            "ldp q16, q17, [{sums}, #128]", "ldp q18, q19, [{sums}, #160]",
            "ldp q20, q21, [{sums}, #192]", "ldp q22, q23, [{sums}, #224]",
            "ldp q24, q25, [{sums}, #256]", "ldp q26, q27, [{sums}, #288]",
            "ldp q28, q29, [{sums}, #320]", "ldp q30, q31, [{sums}, #352]",
            // A run of sixteen units.
            "2:",
            "mov {left:w}, #8",
            // Two units: four values along k of three pairs of rows, of all columns, and of the other three pairs.
            "3:",
            "ldp q0, q1, [{b}]",
            "ldp q2, q3, [{b}, #32]",
            "add {b}, {b}, #64",
            "ld1 {{v5.1d}}, [{upper}], {row}", "ld1 {{v5.d}}[1], [{upper}], {row}",
            "ld1 {{v6.1d}}, [{upper}], {row}", "ld1 {{v6.d}}[1], [{upper}], {row}",
            "ld1 {{v7.1d}}, [{upper}], {row}", "ld1 {{v7.d}}[1], [{upper}], {row}",
            "add {upper}, {upper}, {back}",
            "zip1 v4.4s, v0.4s, v2.4s", "zip2 v2.4s, v0.4s, v2.4s",
            "zip1 v0.4s, v1.4s, v3.4s", "zip2 v3.4s, v1.4s, v3.4s",
            "bfmmla v8.4s, v5.8h, v4.8h", "bfmmla v9.4s, v5.8h, v2.8h",
            "bfmmla v10.4s, v5.8h, v0.8h", "bfmmla v11.4s, v5.8h, v3.8h",
            "ld1 {{v1.1d}}, [{lower}], {row}", "ld1 {{v1.d}}[1], [{lower}], {row}",
            "bfmmla v12.4s, v6.8h, v4.8h", "bfmmla v13.4s, v6.8h, v2.8h",
            "bfmmla v14.4s, v6.8h, v0.8h", "bfmmla v15.4s, v6.8h, v3.8h",
            "ld1 {{v5.1d}}, [{lower}], {row}", "ld1 {{v5.d}}[1], [{lower}], {row}",
            "bfmmla v16.4s, v7.8h, v4.8h", "bfmmla v17.4s, v7.8h, v2.8h",
            "bfmmla v18.4s, v7.8h, v0.8h", "bfmmla v19.4s, v7.8h, v3.8h",
            "ld1 {{v6.1d}}, [{lower}], {row}", "ld1 {{v6.d}}[1], [{lower}], {row}",
            "add {lower}, {lower}, {back}",
            "bfmmla v20.4s, v1.8h, v4.8h", "bfmmla v21.4s, v1.8h, v2.8h",
            "bfmmla v22.4s, v1.8h, v0.8h", "bfmmla v23.4s, v1.8h, v3.8h",
            "bfmmla v24.4s, v5.8h, v4.8h", "bfmmla v25.4s, v5.8h, v2.8h",
            "bfmmla v26.4s, v5.8h, v0.8h", "bfmmla v27.4s, v5.8h, v3.8h",
            "bfmmla v28.4s, v6.8h, v4.8h", "bfmmla v29.4s, v6.8h, v2.8h",
            "bfmmla v30.4s, v6.8h, v0.8h", "bfmmla v31.4s, v6.8h, v3.8h",
            "subs {left:w}, {left:w}, #1",
            "b.ne 3b",
            "add {upper}, {upper}, {skip}",
            "add {lower}, {lower}, {skip}",
            "subs {runs}, {runs}, #1",
            "b.ne 2b",
            "stp q8, q9, [{sums}]", "stp q10, q11, [{sums}, #32]",
            "stp q12, q13, [{sums}, #64]", "stp q14, q15, [{sums}, #96]",
            "stp q16, q17, [{sums}, #128]", "stp q18, q19, [{sums}, #160]",
            "stp q20, q21, [{sums}, #192]", "stp q22, q23, [{sums}, #224]",
            "stp q24, q25, [{sums}, #256]", "stp q26, q27, [{sums}, #288]",
            "stp q28, q29, [{sums}, #320]", "stp q30, q31, [{sums}, #352]",
            sums = in(reg) sums,
            upper = inout(reg) start => _,
            lower = inout(reg) start.wrapping_add(ROWS * row) => _,
            b = inout(reg) stretch.b => _,
            row = in(reg) bytes(row),
            // From a pair of units of the row after the last to the next pair of the first row; and between runs.
            back = in(reg) bytes(2).wrapping_sub(bytes(ROWS * row)),
            skip = in(reg) bytes(run - RUN),
            runs = inout(reg) stretch.units / RUN => _,
            left = out(reg) _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _, out("v7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _, out("v21") _,
            out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _, out("v28") _,
            out("v29") _, out("v30") _, out("v31") _,
            options(nostack),
        );
    }
}

/// `sum[i][j] += Σ rows[i][k]·columns[j][k]` over four `k`.
#[target_feature(enable = "neon,bf16")]
#[inline]
pub(crate) fn bfmmla(mut sum: float32x4_t, rows: uint32x4_t, columns: uint32x4_t) -> float32x4_t {
    // SAFETY: registers alone; the CPU has the instruction, or this could not be called.
    unsafe {
        asm!(
            "bfmmla {sum:v}.4s, {rows:v}.8h, {columns:v}.8h",
            sum = inout(vreg) sum, rows = in(vreg) rows, columns = in(vreg) columns,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
