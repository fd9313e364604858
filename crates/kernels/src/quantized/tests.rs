use half::bf16;
use serde_json::Value;

use super::quantize::nested_around;
use super::*;
use crate::matmul::Matmul;
use crate::testing::{Random, cpus, devices, to_f64};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../goldens/quantized.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn codes(value: &Value) -> Vec<u8> {
    value.as_array().unwrap().iter().map(|x| x.as_i64().unwrap() as u8).collect()
}

const PLAIN: [Scheme; 3] = [
    Scheme::FourBit { kind: FourBit::Nf4, double: false },
    Scheme::FourBit { kind: FourBit::Fp4, double: false },
    Scheme::Int8,
];

fn bits(values: &[f32]) -> Vec<u32> {
    // Zeros of both signs are one value.
    values.iter().map(|x| (x + 0.0).to_bits()).collect()
}

#[test]
fn codes_scales_and_values_are_those_of_bitsandbytes_to_the_bit() {
    let golden = golden();
    for dev in cpus() {
        for case in golden["weights"].as_array().unwrap() {
            let shape = numbers(&case["shape"]).iter().map(|x| *x as usize).collect::<Vec<_>>();
            let weight = Tensor::from_slice(&numbers(&case["weight"]), &shape);
            for scheme in PLAIN {
                let expected = &case[scheme.name()];
                // Weights are stored in bfloat16, and read so.
                for stored in [weight.to_dtype(DType::F32), weight.to_dtype(DType::BF16)] {
                    let found = QuantizedWeight::quantize(&dev, stored.view(), scheme, DType::F32);
                    let (bytes, scales) = match found.codes() {
                        Codes::Int8 { bytes, scales }
                        | Codes::FourBit { bytes, scales: Scales::Plain(scales), .. } => (bytes, scales),
                        Codes::FourBit { .. } | Codes::Fp8 { .. } => panic!("another kind of codes"),
                    };
                    let what = format!("{shape:?} in {} on {}", scheme.name(), dev.isa());
                    assert_eq!(bytes.as_slice(), codes(&expected["codes"]), "codes of {what}");
                    assert_eq!(scales.to_f32_vec(), numbers(&expected["scales"]), "scales of {what}");
                    let values = found.to_tensor().to_f32_vec();
                    assert_eq!(bits(&values), bits(&numbers(&expected["values"])), "values of {what}");
                }
            }
        }
    }
}

#[test]
fn the_dynamic_map_and_quantised_scales_are_those_of_bitsandbytes_to_the_bit() {
    let golden = golden();
    assert_eq!(dynamic_map().to_vec(), numbers(&golden["dynamic_map"]));
    let nested = &golden["nested"];
    let scales = numbers(&nested["scales"]);
    let found = nested_around(&scales, nested["offset"].as_f64().unwrap() as f32);
    assert_eq!(found.codes.as_slice(), codes(&nested["codes"]));
    assert_eq!(found.absmax.to_f32_vec(), numbers(&nested["absmax"]));
    let codes = Scales::Nested(Box::new(found));
    let scales = decode::BlockScales::of(&codes);
    let values: Vec<f32> = (0..300).map(|block| scales.get(block)).collect();
    assert_eq!(values, numbers(&nested["values"]));
    // torch's mean has an order of its own.
    let offset = quantize::nested(&numbers(&nested["scales"])).offset;
    assert!((offset - nested["offset"].as_f64().unwrap() as f32).abs() <= 4e-9, "{offset}");
}

#[test]
fn a_product_with_codes_is_the_product_with_their_values() {
    let double = Scheme::FourBit { kind: FourBit::Nf4, double: true };
    for dev in cpus() {
        // Blocks that end inside of rows; thin products; products of several pieces and passes; weights of few rows and
        // columns.
        for (tokens, outputs, inputs) in [
            (33, 70, 128),
            (1, 50, 192),
            (5, 96, 64),
            (40, 37, 75),
            (20, 300, 320),
            (33, 1, 128),
            (90, 128, 16),
        ] {
            for scheme in PLAIN.into_iter().chain([double]) {
                for dtype in [DType::F32, DType::BF16] {
                    let mut random = Random::new(7);
                    let weight = random.tensor(dtype, &[outputs, inputs]);
                    let weight = QuantizedWeight::quantize(&dev, weight.view(), scheme, dtype);
                    let values = weight.to_tensor();
                    let x = random.tensor(dtype, &[tokens, inputs]);
                    let dy = random.tensor(dtype, &[tokens, outputs]);
                    let [mut y, mut y_expected] = [(); 2].map(|()| Tensor::zeros(dtype, &[tokens, outputs]));
                    let [mut dx, mut dx_expected] = [(); 2].map(|()| Tensor::zeros(dtype, &[tokens, inputs]));
                    Matmul::x_wt(x.view(), &weight, y.view_mut()).run(&dev);
                    Matmul::x_wt(x.view(), values.view(), y_expected.view_mut()).run(&dev);
                    Matmul::dy_w(dy.view(), &weight, dx.view_mut()).run(&dev);
                    Matmul::dy_w(dy.view(), values.view(), dx_expected.view_mut()).run(&dev);
                    let what =
                        format!("{tokens}×{outputs}×{inputs} {} {dtype:?} on {}", scheme.name(), dev.isa());
                    // Where values would go by the thin kernel, sums have another order.
                    let thin = tokens.min(outputs).min(inputs) <= 16;
                    let tolerance = if dtype == DType::F32 { 1e-5 } else { 1e-2 };
                    for (name, found, expected) in [("y", &y, &y_expected), ("dx", &dx, &dx_expected)] {
                        let (what, found, expected) =
                            (format!("{name} of {what}"), to_f64(found), to_f64(expected));
                        match thin {
                            true => crate::testing::assert_close(&what, &found, &expected, tolerance),
                            false => assert_eq!(found, expected, "{what}"),
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn device_matches_reference() {
    let double = Scheme::FourBit { kind: FourBit::Fp4, double: true };
    for dev in devices().into_iter().filter(|dev| dev.cuda().is_some()) {
        for [outputs, inputs] in [[70, 128], [37, 75], [1, 3]] {
            for scheme in PLAIN.into_iter().chain([double]) {
                for dtype in [DType::F32, DType::BF16] {
                    let mut random = Random::new(7);
                    let weight = random.tensor(dtype, &[outputs, inputs]);
                    let weight = QuantizedWeight::quantize(&cpus()[0], weight.view(), scheme, dtype);
                    let values = weight.to_tensor();
                    let weight = weight.on(&dev);
                    assert_eq!(to_f64(&weight.to_tensor()), to_f64(&values), "{} {dtype:?}", scheme.name());
                    // Each row alone: a product with the unit matrix is the weight itself.
                    let unit: Vec<f32> =
                        (0..inputs * inputs).map(|i| f32::from(i % (inputs + 1) == 0)).collect();
                    let unit = Tensor::from_slice(&unit, &[inputs, inputs]).to_dtype(dtype).on(&dev);
                    let mut y = dev.zeros(dtype, &[inputs, outputs]);
                    Matmul::x_wt(unit.view(), &weight, y.view_mut()).run(&dev);
                    let (y, expected) = (to_f64(&y.to_host()), to_f64(&values));
                    for (i, expected) in expected.iter().enumerate() {
                        let found = y[i % inputs * outputs + i / inputs];
                        assert_eq!(
                            found,
                            *expected,
                            "[{outputs}, {inputs}] {} {dtype:?}, element {i}",
                            scheme.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_weight_takes_the_bytes_that_its_scheme_says() {
    let dev = &cpus()[0];
    let double = Scheme::FourBit { kind: FourBit::Fp4, double: true };
    for shape in [[3, 5], [64, 64], [300, 128]] {
        for scheme in PLAIN.into_iter().chain([double]) {
            let weight = Tensor::zeros(DType::BF16, &shape);
            let weight = QuantizedWeight::quantize(dev, weight.view(), scheme, DType::BF16);
            assert_eq!(weight.byte_len(), scheme.bytes(shape), "{shape:?} in {}", scheme.name());
        }
    }
}

#[test]
fn codes_of_another_size_are_refused() {
    let four_bit = |bytes: usize, scales: usize, block: usize| {
        let scales = Scales::Plain(Tensor::zeros(DType::F32, &[scales]));
        let (kind, bytes) = (FourBit::Nf4, Bytes::of(&vec![0; bytes]));
        let codes = Codes::FourBit { kind, bytes, block, scales, zeros: None };
        QuantizedWeight::from_codes([4, 32], codes, DType::F32).map(|_| ())
    };
    assert_eq!(four_bit(64, 2, 64), Ok(()));
    assert_eq!(four_bit(63, 2, 64).unwrap_err(), "63 bytes of codes, and a weight of 4 × 32 has 64");
    assert_eq!(four_bit(64, 3, 64).unwrap_err(), "3 scales, and a weight of 4 × 32 has 2");
    assert_eq!(
        four_bit(64, 2, 48).unwrap_err(),
        "blocks of 48 elements: a power of two from 8 on is expected"
    );
}

#[test]
fn edges_are_no_rows_and_values_of_every_size() {
    for dev in cpus() {
        for scheme in PLAIN {
            let none = QuantizedWeight::quantize(
                &dev,
                Tensor::zeros(DType::BF16, &[0, 64]).view(),
                scheme,
                DType::BF16,
            );
            assert_eq!(none.to_tensor().elements(), 0);
            let values = [0.0, 1e-30, -1e-38, 1000.0].map(bf16::from_f32);
            let tensor = Tensor::from_slice(&values, &[2, 2]);
            let found = QuantizedWeight::quantize(&dev, tensor.view(), scheme, DType::F32).to_tensor();
            assert!(found.to_f32_vec().iter().all(|x| x.is_finite()), "{found:?}");
            assert_eq!(found.to_f32_vec()[3], 1000.0);
        }
    }
}
