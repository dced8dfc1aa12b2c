PYTHON ?= python
PACKAGES := runtime engines calibration compile
TYPING := build/typing/megrez

.PHONY: check
check: $(PACKAGES:%=$(TYPING)/%)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	MYPYPATH=build/typing $(PYTHON) -m mypy -p megrez

# mypy does not follow an editable install's folder mapping: these links show it the packages under their names.
$(TYPING)/%:
	mkdir -p $(TYPING)
	ln -s ../../../$* $@
