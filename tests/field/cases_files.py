"""Texts and files that come in, text and pictures that go out."""

from tests.field.case import Case

NO_OVERRIDE = "setpriv --bounding-set -dac_override,-dac_read_search"
"""Command that runs another as root without the permission to read everything."""
SMALL = "--no-tuned --sample 0 --config $CONFIG"

TEXT_IN = (
    Case(
        "runs in the folder of the text",
        f"cd $W; cp $TEXT .; $T train {SMALL} --text . --out runs/a; $T train {SMALL} --text . --out runs/b; "
        "$T train --resume --out runs/a --steps 45 --sample 0; grep -c . runs/a/metrics.jsonl", 4,
        leaves=("runs/a/checkpoints/step-000045",),
    ),
    Case("BPE on a text without spaces",
         "$PY -c \"print(('acgt' * 7 + 'gattaca') * 6000)\" > $W/dna.txt; "
         f"$T train {SMALL} --text $W/dna.txt --set data.tokenizer=bpe --set model.vocab_size=300 --out $W/run", 4, limit=90),
    Case("BPE is stopped by SIGTERM",
         "$PY -c \"import random; random.seed(1); print(''.join(random.choices('acgt', k=3000000)))\" > $W/dna.txt; "
         f"timeout 4 $T train {SMALL} --text $W/dna.txt --set data.tokenizer=bpe --set model.vocab_size=4000 --out $W/run "
         "--steps 100000000", 4, status=(124, 143), limit=20),
    Case("unreadable folder and file", f"{NO_OVERRIDE} $T train {SMALL} --text $W/texts --out $W/run", 4, says=("closed|locked",),
         setup="mkdir -p $W/texts/locked && cp $TEXT $W/texts/a.txt && cp $TEXT $W/texts/closed.txt && "
               "cp $TEXT $W/texts/locked/ && chmod 0 $W/texts/locked $W/texts/closed.txt"),
    Case("UTF-16 with a mark", f"iconv -t UTF-16 $TEXT > $W/a.txt; $T train {SMALL} --text $W/a.txt --out $W/run", 4,
         status=(0, 1), says=("UTF-16|UTF16|utf_16",)),
    Case("UTF-16 without a mark", f"iconv -t UTF-16LE $TEXT > $W/a.txt; $T train {SMALL} --text $W/a.txt --out $W/run", 4,
         status=(0, 1), says=("UTF-16|UTF16|utf_16",)),
    Case("cp1252", "$PY -c \"open('$W/a.txt', 'wb').write('Der Müller sagt „nein“ – für 5 €. '.encode('cp1252') * 300)\"; "
         f"$T train {SMALL} --text $W/a.txt --out $W/run", 4, status=(0, 1), says=("(?i)1252|latin",)),
    Case("gzip", f"gzip -c $TEXT > $W/a.txt.gz; $T train {SMALL} --text $W/a.txt.gz --out $W/run", 4),
    Case("zip", f"$PY -m zipfile -c $W/a.zip $TEXT; $T train {SMALL} --text $W/a.zip --out $W/run", 4, status=(1,),
         says=("(?i)zip",)),
    Case("PDF", f"printf '%%PDF-1.7\\n\\200\\201\\n' > $W/a.pdf; $T train {SMALL} --text $W/a.pdf --out $W/run", 4,
         status=(1,), says=("PDF",)),
    Case("binary", f"head -c 20000 /dev/urandom > $W/a.bin; $T train {SMALL} --text $W/a.bin --out $W/run", 4, status=(1,)),
    Case("empty text", f": > $W/a.txt; $T train {SMALL} --text $W/a.txt --out $W/run", 4, status=(1,)),
    Case("names that are no UTF-8",
         f"cp $TEXT $W/$'caf\\xe9.txt'; $T train {SMALL} --text $W/$'caf\\xe9.txt' --out $W/$'r\\xe9'; "
         "$T sample $W/$'r\\xe9' --tokens 5", 4),
    Case("name of a run that is no UTF-8", f"$T train {SMALL} --text $TEXT --set name=$'n\\xe9' --out $W/run", 4, status=(1,),
         says=("UTF-8",)),
    Case("relative text, resumed elsewhere",
         f"mkdir $W/a $W/b; cp $TEXT $W/a/t.txt; cd $W/a; $T train {SMALL} --text t.txt --out ../run; cd ../b; "
         "$T train --resume --out ../run --steps 45 --sample 0", 4, leaves=("run/checkpoints/step-000045",)),
    Case("text that has moved",
         f"cp $TEXT $W/t.txt; $T train {SMALL} --text $W/t.txt --out $W/run; mv $W/t.txt $W/u.txt; "
         "$T train --resume --out $W/run --steps 45 --sample 0 || "
         "$T train --resume --text $W/u.txt --out $W/run --steps 45 --sample 0", 4, says=("--text",),
         leaves=("run/checkpoints/step-000045",)),
    Case("configuration with a byte order mark",
         "printf '\\357\\273\\277' | cat - $CONFIG > $W/c.json; $T train --config $W/c.json --text $TEXT --out $W/run", 4),
)  # fmt: skip

OUTPUT = (
    *(
        Case(f"sample on a console of {encoding}",
             f"(cat $TEXT; printf 'é漢 %.0s' {{1..400}}) > $W/t.txt; $T train {SMALL} --text $W/t.txt --out $W/run; "
             "$T sample $W/run --tokens 60 --prompt 'é漢'", 5, environment=variables)
        for encoding, variables in (
            ("ASCII", {"PYTHONIOENCODING": "ascii", "LANG": "C"}),
            ("Latin-1", {"PYTHONIOENCODING": "latin-1"}),
            ("cp1252", {"PYTHONIOENCODING": "cp1252"}),
            ("the POSIX locale", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        )
    ),
    Case("prompt that is no UTF-8", "$T sample $RUN --tokens 5 --prompt $'\\xff\\xfe'", 5, status=(0, 1)),
    Case("doctor in ASCII", "$T doctor --no-measure", 5, environment={"PYTHONIOENCODING": "ascii"}),
    Case("training in ASCII", "$T train --config $CONFIG --text $TEXT --sample 40 --out $W/run", 5,
         environment={"PYTHONIOENCODING": "ascii"}, says=("run directory",)),
    Case("backend of a notebook", "$TRAIN --out $W/run", 5, environment={"MPLBACKEND": "module://nothing.here"},
         leaves=("run/loss.png",)),
    Case("usetex without LaTeX", "echo 'text.usetex: True' > $W/matplotlibrc; $TRAIN --out $W/run", 5,
         environment={"MATPLOTLIBRC": "$W/matplotlibrc"}),
    Case("dollar signs in the name", "$TRAIN --set 'name=a$b$_{$' --out $W/run", 5, leaves=("run/loss.png",)),
    Case("matplotlib without a folder", "$TRAIN --out $W/run", 5, environment={"MPLCONFIGDIR": "/proc/none"},
         lacks=("(?m)^Matplotlib",), leaves=("run/loss.png",)),
    *(
        Case(f"training in the locale {locale}", "$TRAIN --sample 40 --out $W/$'r\\xc3\\xa9'; $T sample $W/r* --tokens 20", 5,
             environment={"LC_ALL": locale, "LANG": locale}, says=("run directory",))
        for locale in ("ja_JP.SJIS", "tr_TR.ISO-8859-9", "nowhere")
    ),
    Case("full standard output of a training", "$TRAIN --sample 5 --out $W/run > /dev/full", 5,
         leaves=("run/checkpoints/step-000040",)),
    Case("full standard error of a training", "$TRAIN --sample 5 --out $W/run 2> /dev/full", 5,
         leaves=("run/checkpoints/step-000040",)),
    Case("a training whose reader has gone", "set +o pipefail; $TRAIN --sample 50 --out $W/run 2>&1 | head -1", 5,
         leaves=("run/checkpoints/step-000040",)),
    Case("reports whose reader has gone", "for c in 'doctor --no-measure' 'train --help' \"eval $RUN\" \"sample $RUN\" "
         "'train --estimate --config nanogpt-cpu'; do $T $c 2>&1 | head -c 1 > /dev/null; done", 5),
    Case("no standard error", "$TRAIN --out $W/run 2>&-", 5, leaves=("run/checkpoints/step-*",)),
    Case("no standard output", "$TRAIN --sample 5 --out $W/run >&-", 5, leaves=("run/checkpoints/step-*",)),
    Case("no standard stream", "$TRAIN --out $W/run <&- >&- 2>&-", 5, leaves=("run/checkpoints/step-*",)),
    Case("full standard output", "$T sample $RUN --tokens 20 > /dev/full", 5, status=(1,), says=("space|output",)),
    *(
        Case(f"{name} into a file", "$TRAIN --out $W/run > $W/log 2>&1; cat -v $W/log", 5,
             environment={name: "1"}, lacks=(r"\^\[\[\?25", r"\^\[\[\d*[AK]", r"\^M"))
        for name in ("FORCE_COLOR", "TTY_COMPATIBLE")
    ),
    Case("narrow terminal", "$T doctor --no-measure", 5, environment={"COLUMNS": "20", "FORCE_COLOR": "1"}),
)  # fmt: skip

MODELS = (
    Case("vocabulary larger than the tokenizer's", "$TRAIN --sample 200 --set model.vocab_size=300 --out $W/run; "
         "$T eval $W/run; $T sample $W/run --tokens 300", 6),
    Case("BPE with fewer merges than asked", "printf 'ab ab ab ab %.0s' $(seq 500) > $W/t.txt; $T train --config $CONFIG "
         "--text $W/t.txt --set data.tokenizer=bpe --set model.vocab_size=1000 --out $W/run; $T sample $W/run --tokens 90", 6),
    Case("text shorter than the context", "printf 'the c' > $W/t.txt; $T eval $RUN --text $W/t.txt", 6),
    Case("foreign names of tensors",
         "$PY - <<'END'\nimport os, shutil, glob\nfrom safetensors.numpy import load_file, save_file\n"
         "source = sorted(glob.glob(os.environ['RUN'] + '/checkpoints/step-*'))[-1]\nw = os.environ['W'] + '/hf'\n"
         "shutil.copytree(source, w); os.remove(w + '/training.json')\n"
         "tensors = load_file(w + '/model.safetensors')\n"
         "save_file({'_orig_mod.' + k: v for k, v in tensors.items()}, w + '/model.safetensors', {'format': 'pt'})\nEND\n"
         "$T sample $W/hf --tokens 5", 6),
    Case("unknown names of tensors",
         "$PY - <<'END'\nimport os, shutil, glob\nfrom safetensors.numpy import load_file, save_file\n"
         "source = sorted(glob.glob(os.environ['RUN'] + '/checkpoints/step-*'))[-1]\nw = os.environ['W'] + '/hf'\n"
         "shutil.copytree(source, w); os.remove(w + '/training.json')\n"
         "tensors = load_file(w + '/model.safetensors')\n"
         "save_file({'zebra' + k: v for k, v in tensors.items()}, w + '/model.safetensors')\nEND\n"
         "$T sample $W/hf --tokens 5", 6, status=(1,), says=("zebra",), lacks=(r"\[np|dict_keys|\{'",)),
    Case("a stop text", "$T sample $RUN --tokens 200 --stop e", 6),
    Case("end of text ignored", "$T sample $RUN --tokens 20 --ignore-eos", 6),
    Case("sample of 1,500 tokens", "$T sample $RUN --tokens 1500", 6, limit=30),
    Case("a checkpoint that is cut off", "cp -r $RUN $W/run; truncate -s 100 $W/run/checkpoints/*/model.safetensors; "
         "$T sample $W/run", 6, status=(1,)),
    *(
        Case(f"tune --budget {budget}", f"$T tune --config $CONFIG --budget {budget}", 6, status=(0, 1, 2))
        for budget in ("1e-9", "nan", "-1", "0")
    ),
    Case("tune --budget inf", "timeout -k 5 6 $T tune --config $CONFIG --budget inf", 6, status=(0, 2, 124)),
    *(
        Case(f"sample {options}", f"$T sample $RUN --tokens 5 {options}", 6, status=(0, 1, 2), says=says)
        for options, says in (
            ("--temperature nan", ("temperature",)),
            ("--temperature inf", ("temperature",)),
            ("--temperature -1", ("temperature",)),
            ("--temperature 1e-300", ()),
            ("--top-p nan", ("top.p",)),
            ("--top-k 99999999999999999999", ()),
            ("--seed 99999999999999999999999", ()),
            ("--tokens 99999999999999999999999 | head -c 100", ()),
        )
    ),
    *(
        Case(f"train {options}", f"timeout -k 5 60 $TRAIN --out $W/run {options}", 6, status=(1, 2))
        for options in (
            "--steps 0", "--set optimizer.lr=nan", "--set optimizer.lr=inf", "--set batch_size=-1", "--time-limit nan",
            "--set model.channels=99999999999999999999", "--set seed=99999999999999999999999", "--set optimizer.clip=-1",
            "--set model.context=1000000000", "--set threads.forward=0", "--set trace.batches=99999999999999",
            "--set threads.total=-1", "--set slots=100000000000",
        )
    ),
    Case("bench --seconds nan", "$T bench --config $CONFIG --seconds nan", 6, status=(1, 2)),
    Case("python -m threadloom", "$PY -m threadloom --help; $PY -m threadloom sample", 6, status=(2,),
         says=("Usage: threadloom ",), lacks=("python -m",)),
)  # fmt: skip
