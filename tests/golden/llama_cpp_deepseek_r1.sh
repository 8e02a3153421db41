llama-server -m /models/model.gguf \
  -fit off -ngl 62 -sm layer -ts 8,8,8,8,8,8,8,6 \
  -ot '^blk\.(?:[6-7]|1[4-5]|2[2-3]|3[0-18-9]|4[6-7]|5[4-5])\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CPU,^blk\.60\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA0,^blk\.4\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA1,^blk\.12\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA2,^blk\.20\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA3,^blk\.28\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA4,^blk\.36\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA5,^blk\.44\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA6,^blk\.52\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA7' \
  -c 32768 -np 1 -ub 512 -fa on -ctk q8_0 -ctv q8_0
