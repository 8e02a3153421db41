# sglang-kt by moeplan: deepseek-v2-lite on a card
# cuda:0: embedding, head, attention 0-26, experts 1-24
# cpu: experts 13-26

python3 - <<'EOF'
import torch

# layers:experts that go to the GPU
rows = '''
1-12:0-63
13-24:0-3,8-31,40,42,44,63
'''


def numbers(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


counts = torch.zeros(1, 27, 64)
for row in rows.split():
    layers, experts = row.split(":")
    for layer in numbers(layers):
        counts[0, layer, list(numbers(experts))] = 1
torch.save({"logical_count": counts}, "experts_on_gpu.pt")
EOF

python3 -m sglang.launch_server \
  --model-path '/models/DeepSeek V2 Lite' \
  --kt-weight-path '/models/DeepSeek V2 Lite' \
  --kt-method BF16 \
  --kt-cpuinfer "$(lscpu -p=CORE,SOCKET | grep -v '^#' | sort -u | wc -l)" \
  --kt-threadpool-count "$(lscpu -p=NODE | grep -v '^#' | sort -u | wc -l)" \
  --kt-gpu-experts-ratio 0.6926 \
  --kt-expert-placement-strategy frequency \
  --init-expert-location experts_on_gpu.pt \
  --disable-shared-experts-fusion \
  --tensor-parallel-size 1 \
  --base-gpu-id 0 \
  --max-running-requests 2 \
  --max-total-tokens 1280 \
  --chunked-prefill-size 1024
