# make demo   set everything up and run the main job
# make test   set up what the tests need; lint, types, import rules, tests
# make zoo    the same for networks of torchvision and timm
# The rest    slow proofs, whose outcomes are kept under results/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Without a GPU a CPU build of torch is a fifth of the download; not every index carries one.
TORCH_CPU ?= torch==2.13.0+cpu
TORCH ?= torch>=2.8

# The native engine's sources: the package is built anew when they change.
NATIVE := CMakeLists.txt $(shell find native/src -type f)

.PHONY: demo test zoo lint bundled-results resume-proof training-cost training-imagenet onnx-check bench-r74 bench-imagenet bench-static bench-skip budgets-r74 budgets-dfs-r74 budgets-bundled figures \
  bench-cascade bench-cascade-photos promise-proof hold-proof fuzz attack native-sanitize arm-check onednn-check bench-kernels engine-parity clean

demo: $(VENV)/demo.stamp
	$(BIN)/fracskip demo

# Tests that load other engines have a process of their own: OpenVINO's does not survive a Ctrl-C,
# which the training's tests send. A process of one thread a core is quicker than one of many threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal
ENGINES := tests/unit/bench tests/unit/deployment tests/contract/test_bench_contract.py
test: lint
	$(PYTEST) $(ENGINES)
	$(PYTEST) $(ENGINES:%=--ignore=%)

# Networks of torchvision and timm; they import with a build of torch of several GB alone, and they
# are large: two at a time.
zoo: $(VENV)-zoo/zoo.stamp
	OMP_NUM_THREADS=1 $(VENV)-zoo/bin/python -m pytest -p no:cacheprovider -n 2 --dist worksteal tests/zoo

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The whole test set through the bundled network.
bundled-results: $(VENV)/demo.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/fracskip eval bundled --data cifar10 --json results/eval_bundled_cifar10.json

# 2,000 steps, killed at ten random moments and resumed: the same weights, bit for bit.
resume-proof: $(VENV)/train.stamp
	$(BIN)/python tools/prove_resume.py --steps 2000 --kills 10 --json results/resume_proof.json

# What a step of joint training costs, in plain steps.
training-cost: $(VENV)/train.stamp
	$(BIN)/python benchmarks/training_cost.py --json results/training_cost.json

# Time and memory of training a converted ResNet-50, beside the plain one's.
training-imagenet: $(VENV)-zoo/zoo.stamp
	OMP_NUM_THREADS=1 $(VENV)-zoo/bin/python tools/measure_training.py \
	  --json results/training_imagenet.json

# The bundled network as an ONNX model in ONNX Runtime, against torch, on the whole test set.
onnx-check: $(VENV)/test.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/python tools/check_onnx.py --json results/onnx_bundled.json

# The dynamic network for CPUs beside other engines that run its backbone, one image at a time.
CPU_NET := cpu-resnet74-cifar10
FRONTIER := $(patsubst %,models/resnet%_cifar10.safetensors,8 14 20 38)
bench-r74: $(VENV)/bench.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/fracskip bench $(CPU_NET) --backbone models/resnet74_cifar10.safetensors \
	  --frontier $(FRONTIER) --engines native,onnxruntime,openvino --images 10000 \
	  --json results/bench_r74.json --figure results/bench_r74.svg

# The same network at every budget, and whether its decisions are worth more than their costs say.
budgets-r74: $(VENV)/train.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/fracskip sweep $(CPU_NET) --data cifar10 --json results/cpu_resnet74_sweep.json
	$(BIN)/python tools/controls.py $(CPU_NET) --json results/cpu_resnet74_controls.json

budgets-dfs-r74: $(VENV)/train.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/fracskip export dfs-resnet74-cifar10 --to runs/dfs_resnet74.fsk
	$(BIN)/fracskip sweep runs/dfs_resnet74.fsk --data cifar10 --json results/dfs_resnet74_sweep.json
	$(BIN)/python tools/controls.py dfs-resnet74-cifar10 --json results/dfs_resnet74_controls.json

# The same for the bundled network; the best static allocation of the same weights; and which images
# are expensive.
budgets-bundled: $(VENV)/train.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/fracskip sweep bundled --data cifar10 --json results/dfs_resnet38_sweep.json
	$(BIN)/python tools/controls.py bundled --json results/dfs_resnet38_controls.json
	$(BIN)/python tools/search_allocation.py bundled --json results/dfs_resnet38_allocation.json
	$(BIN)/python tools/study_images.py bundled --backbone models/resnet38_cifar10.safetensors \
	  --static $(wildcard runs/static_resnet38_*bit/model.safetensors) \
	  --json results/dfs_resnet38_study.json

# ImageNet's networks on a clock. Their bundles are made where torchvision imports.
IMAGENET_RECORD ?= results/bench_imagenet.json
bench-imagenet: $(VENV)/bench.stamp $(VENV)-zoo/zoo.stamp
	$(VENV)-zoo/bin/python tools/imagenet_bundles.py build/imagenet
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench_imagenet.py build/imagenet --json $(IMAGENET_RECORD)

# Static networks at 8 and 4 bits beside other engines' int8, one thread and two.
STATIC_RECORD ?= results/bench_static.json
bench-static: $(VENV)/bench.stamp $(VENV)-zoo/zoo.stamp
	OMP_NUM_THREADS=1 $(VENV)-zoo/bin/python tools/static_bundles.py build/static
	OMP_NUM_THREADS=1 $(BIN)/python tools/bench_static.py build/static --json $(STATIC_RECORD) $(STATIC_OPTIONS)

# Cascades of networks that are quantised after training, beside all of their static networks and OpenVINO's.
bench-cascade: $(VENV)/bench.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/fracskip data cifar100
	$(BIN)/python tools/bench_cascade.py cifar10 --json results/cascade_cifar10.json --figure results/cascade_cifar10.svg
	$(BIN)/python tools/bench_cascade.py cifar100 --json results/cascade_cifar100.json --figure results/cascade_cifar100.svg

# The same of EfficientNet-Lite networks on photographs. LITE holds the weights and gets the bundles.
LITE := build/lite
PHOTOS ?= photos5
bench-cascade-photos: $(VENV)/bench.stamp $(VENV)-zoo/zoo.stamp
	$(VENV)-zoo/bin/python tools/lite_networks.py $(LITE)
	$(VENV)-zoo/bin/python tools/lite_bundles.py $(LITE) --photos $(PHOTOS)
	$(BIN)/python tools/bench_cascade.py photos --lite $(LITE) --photos $(PHOTOS) \
	  --json results/cascade_photos.json --figure results/cascade_photos.svg

# A promise about accuracy is broken as seldom as it says; budgets are held on other images.
promise-proof: $(VENV)/train.stamp
	$(BIN)/python tools/prove_promise.py --splits 100
hold-proof: $(VENV)/train.stamp
	$(BIN)/python tools/prove_hold.py

# Every figure of the documents, from the records under results/ and the images that they name.
figures: $(VENV)/demo.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/python tools/draw_figures.py

# Whether skipping blocks saves time in proportion.
bench-skip: $(VENV)/train.stamp
	$(BIN)/fracskip export $(CPU_NET) --to runs/cpu_resnet74_cifar10.fsk
	$(BIN)/python benchmarks/skip_proportional.py --bundle runs/cpu_resnet74_cifar10.fsk \
	  --json results/skip_proportional.json --figure results/skip_proportional.svg

# The native engine against torch on the whole test set.
engine-parity: $(VENV)/test.stamp
	$(BIN)/fracskip data cifar10
	$(BIN)/python tools/check_engine.py bundled $(CPU_NET) \
	  --json results/engine_parity.json

# Every kernel of this processor against plain loops, then timed.
bench-kernels: $(VENV)/test.stamp
	$(BIN)/cmake -S . -B build/kernels -DFRACSKIP_TESTS=ON
	$(BIN)/cmake --build build/kernels --target native_kernels
	build/kernels/native/tests/kernels 2000
	{ date -I; grep -m1 'model name' /proc/cpuinfo; build/kernels/native/tests/kernels --bench; } \
	  | tee results/bench_kernels.txt

# The same integers as oneDNN, and both timed.
onednn-check: $(VENV)/test.stamp
	$(PIP) 'fracskip[onednn]'
	$(BIN)/cmake -S . -B build/onednn -DFRACSKIP_TESTS=ON -DCMAKE_PREFIX_PATH=$(CURDIR)/$(VENV)
	$(BIN)/cmake --build build/onednn --target native_onednn
	{ date -I; grep -m1 'model name' /proc/cpuinfo; \
	  OMP_NUM_THREADS=1 build/onednn/native/tests/onednn; } | tee results/onednn_check.txt

# Damaged bundles under sanitizers: refused, or read and run.
fuzz: $(VENV)/test.stamp
	PYTHONPATH=tests $(BIN)/python tools/fuzz_bundle.py --count 20000 --json results/fuzz_bundle.json
	PYTHONPATH=tests $(BIN)/python tools/fuzz_json.py --count 500000

# Hostile images, bundles and checkpoints: read, or refused. Runs that are killed: resumed.
attack: $(VENV)/test.stamp
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tools/attack.py --json results/attack.json

# Threads, kernels and lifetimes of native engines under sanitizers, at length.
native-sanitize: $(VENV)/test.stamp
	PYTHONPATH=tests $(BIN)/python tools/sanitize_native.py

# The engine for aarch64 on processors that QEMU emulates, and its instructions counted.
arm-check: $(VENV)/test.stamp
	PYTHONPATH=tests $(BIN)/python tools/check_arm.py

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fracskip needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) -V`: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/torch.stamp: $(VENV)/python.stamp
	@if nvidia-smi >/dev/null 2>&1; then $(PIP) '$(TORCH)'; \
	 elif $(PIP) '$(TORCH_CPU)' 2>/dev/null; then echo 'torch: a CPU build'; \
	 else echo 'torch: no CPU build found, installing the default one'; $(PIP) '$(TORCH)'; fi
	touch $@

# No torch: the native engine runs the bundled network. Without a C++17 compiler it takes torch.
$(VENV)/demo.stamp: $(VENV)/python.stamp pyproject.toml $(NATIVE)
	$(PIP) --editable '.[report]'
	@$(BIN)/python -c 'import fracskip.runtime._native' 2>/dev/null || \
	  { echo 'no native engine was built: torch will run the network'; $(MAKE) $(VENV)/torch.stamp; }
	touch $@

# The package is there and is not built again: its extras are added.
$(VENV)/train.stamp: $(VENV)/torch.stamp $(VENV)/demo.stamp
	$(PIP) 'fracskip[train,report]'
	touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp $(VENV)/demo.stamp
	$(PIP) 'fracskip[train,report,dev]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/torch.stamp $(VENV)/demo.stamp
	$(PIP) 'fracskip[train,report,bench]'
	touch $@

# The package with its engine, of which most is compiled already.
$(VENV)-zoo/zoo.stamp: $(VENV)/demo.stamp
	$(PYTHON) -m venv $(VENV)-zoo
	$(VENV)-zoo/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' torchvision timm \
	  lightning lightning-fabric numpy pydantic pillow rich safetensors pytest pytest-xdist hypothesis
	$(VENV)-zoo/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-zoo build dist fracskip-demo*.html fracskip-demo*.json
