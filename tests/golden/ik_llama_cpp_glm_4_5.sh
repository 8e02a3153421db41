llama-server -m /models/model.gguf \
  -ngl 94 -sm layer -ts 31,31,32 \
  -ot '^blk\.(?:2[1-9]|30|5[2-9]|6[0-1]|8[3-9]|9[0-1])\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CPU,^blk\.77\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA0,^blk\.15\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA1,^blk\.46\.ffn_(?:up|down|gate_up|gate)_(?:ch)?exps\.=CUDA2' \
  -c 32768 -np 1 -ub 512 -ctk q8_0 -ctv q8_0
