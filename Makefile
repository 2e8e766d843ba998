# The commands of README.md. Each stands there in plain pip and python, too.

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python

.PHONY: demo zh-small test test-processors arm parity vllm bench tasks compat mutants fuzz torture torture-share serve-check browser lint clean

demo: $(VENV)/ready
	$(RUN) examples/demo.py

zh-small: $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check "pypinyin>=0.55"
	$(RUN) examples/zh_small.py

test: $(VENV)/ready
	$(RUN) -m pytest

# The tests whose outcome can depend on the processor, as on one with AVX2 alone and on one with less.
PROCESSOR_TESTS := tests/test_fused_block.py tests/test_learners.py tests/test_cli.py tests/test_custom_autograd.py \
	tests/test_generation.py tests/test_generate.py tests/test_quantization_layers.py tests/test_quantize.py \
	tests/test_distributed.py

test-processors: $(VENV)/ready
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(RUN) -m pytest $(PROCESSOR_TESTS)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(RUN) -m pytest $(PROCESSOR_TESTS)

# The compiled step on ARM, under emulation.
arm: $(VENV)/ready
	$(RUN) -m tests.arm

parity: $(VENV)/ready .venv-parity/ready
	$(RUN) -m tests.parity --judges .venv-parity/bin/python \
		$(if $(wildcard .venv-vllm/ready),--vllm .venv-vllm/bin/python)

# vLLM for CPUs, x86-64 and ARM, as one more judge of `make parity` from then on.
vllm: .venv-vllm/ready

bench: $(VENV)/ready .venv-parity/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check "matplotlib>=3.8"
	$(RUN) -m llama.benchmark --peers --output benchmarks/generation.json --plot benchmarks/roofline.png

tasks: $(VENV)/ready .venv-bench/ready
	$(RUN) -m weights.fetch smollm2-135m-instruct peoples-daily reviews poems
	$(RUN) -m tests.benchmarks --judges .venv-bench/bin/python

compat:
	$(PYTHON) -m tests.compat

mutants: $(VENV)/ready
	$(RUN) -m tests.mutants
	$(RUN) -m tests.learners

fuzz: $(VENV)/ready
	$(RUN) -m tests.fuzz --count $(or $(COUNT),400)

torture: $(VENV)/ready
	$(RUN) -m tests.torture --json torture.json

torture-share: $(VENV)/ready
	$(RUN) -m tests.torture --share 3

serve-check: $(VENV)/ready .venv-serve/ready
	$(RUN) -m weights.fetch smollm2-135m-instruct qwen2.5-coder-0.5b-instruct
	$(RUN) -m tests.serve --client .venv-serve/bin/python

browser: $(VENV)/ready .venv-serve/ready
	$(RUN) -m tests.serve.browse --browser .venv-serve/bin/python

lint: $(VENV)/ready
	$(RUN) -m pip install --quiet --disable-pip-version-check ruff==0.17.6
	$(RUN) -m ruff check .

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt
	touch $@

.venv-parity/ready: requirements-parity.txt
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt
	touch $@

.venv-serve/ready: requirements-serve.txt
	$(PYTHON) -m venv .venv-serve
	.venv-serve/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-serve.txt
	touch $@

.venv-vllm/ready: requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-vllm.txt
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.venv-bench/ready: pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check "scikit-learn>=1.5" \
		"sklearn-crfsuite>=0.5" "snownlp==0.12.3"
	touch $@

clean:
	rm -rf $(VENV) .venv-parity .venv-bench .venv-serve .venv-vllm .venv-compat .pytest_cache .ruff_cache
