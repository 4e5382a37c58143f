# The pipeline and its checks. Every target creates .venv first; PYTHON=python3.12 chooses another.
PYTHON ?= python3
DATA ?= data
BACKBONE ?= resnet50
DEPTH_MODEL ?= vits
PY := .venv/bin/python
DEMO := --data-dir data/demo
MODELS := --checkpoint-dir checkpoints/demo
CLAIMS := --data-dir data/demo/claims
WORKERS := --numprocesses 2 --dist worksteal

.PHONY: demo pipeline test test-all lint bench ablation notebooks clean

demo: .venv/base  ## rendered photos → table → depth → two models → report → placing, verifying
	$(PY) data/demo/prepare.py
	$(PY) exif_extractor.py $(DEMO)
	$(PY) depth_map_generator.py $(DEMO) --depth-model demo --input-size 252
	$(PY) gps_orientation_trainer.py $(DEMO) $(MODELS) --backbone tf_efficientnet_lite0 --mode frozen
	$(PY) evaluate_gps_model.py $(DEMO) $(MODELS) --output-dir evaluation/demo
	$(PY) evaluate_gps_model.py $(DEMO) $(MODELS) --output-dir evaluation/demo --place
	$(PY) exif_extractor.py $(CLAIMS)
	$(PY) depth_map_generator.py $(CLAIMS) --depth-model demo --input-size 252
	$(PY) evaluate_gps_model.py $(CLAIMS) $(MODELS) --output-dir evaluation/demo/claims --verify
	$(PY) data/demo/check.py

pipeline: .venv/base  ## the same for the photos in data/images (DATA=…, BACKBONE=…, DEPTH_MODEL=…)
	$(PY) exif_extractor.py --data-dir $(DATA)
	$(PY) depth_map_generator.py --data-dir $(DATA) --depth-model $(DEPTH_MODEL)
	$(PY) gps_orientation_trainer.py --data-dir $(DATA) --backbone $(BACKBONE)
	$(PY) evaluate_gps_model.py --data-dir $(DATA)

test: .venv/dev  ## the default suite, minutes
	$(PY) -m pytest $(WORKERS)

test-all: .venv/dev  ## the slow tests too
	$(PY) -m pytest $(WORKERS) -m "slow or not slow"

lint: .venv/dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: demo .venv/dev  ## speed against ExifTool and the official depth procedure
	$(PY) benchmarks/bench_exif.py
	$(PY) benchmarks/bench_depth.py
	$(PY) benchmarks/bench_training.py
	$(PY) benchmarks/bench_predict.py
	$(PY) benchmarks/bench_backbones.py
	$(PY) benchmarks/bench_cost.py

ablation: demo .venv/dev  ## what each ingredient of the recipe brings, on the demo and other photos
	$(PY) benchmarks/ablation.py --csv evaluation/ablation.csv

notebooks: demo .venv/dev  ## run the notebooks from the top on the demo photos, in place
	.venv/bin/jupyter-execute --inplace notebooks/*.ipynb

clean:  ## everything that can be made again; photos, tables and models stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage evaluation data/cache data/demo/cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/base: requirements.txt | .venv/bin/python
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

.venv/dev: requirements-dev.txt .venv/base
	$(PY) -m pip install --quiet --requirement requirements-dev.txt
	touch $@
