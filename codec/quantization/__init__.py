"""int8 for the codec's transforms: quantization-aware training, post-training quantization, int8 arithmetic in eval.

- `phases`: inserts quantizers and switches the phases of training. `calibrate`: everything that needs pictures.
  `freeze`: the copy for an exporter.
- `observers`: how ranges are learned. `quantizers`: fake quantization of activations and weights. `layers`, `pairs`:
  convolutions, linear layers, sums and products with an int8 runtime's arithmetic. `widen`: activations of 16 bits.
- `tracing`, `graph`: where the quantizers go. `rounding`: GPTQ.
- `ranges`: fitted ranges of activations. `levels`: y and y_hat with a step for each channel. `splits`: channels that
  the chip has several times, for finer levels.
- `equalize`: cross-layer equalization. `freedoms`: which channels may be scaled.
  `sensitivity`: what rounding a tensor costs the result.
"""
