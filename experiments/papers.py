"""Every row of the tables of [FCN], [V1], [V2], [V3] and [V3+] as one command.

    python -m experiments.papers

writes the table of experiments/README.md from `ROWS`; a test builds every distinct graph of them.
`python -m experiments.run` trains and evaluates them.
"""

from pathlib import Path

from experiments import plan

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- papers.py: begin -->\n", "<!-- papers.py: end -->\n"
# In the order of the papers: experiments/tables/NAME.py.
TABLES = (
    "fcn_table1 fcn_table2 fcn_table4 fcn_table5 fcn_context "
    "v2_table1 v1_val v1_test "
    "v2_table2 v2_test v2_table3 v2_table4 v2_context v2_person_part v2_cityscapes "
    "v3_table4 v3_table6 v3_test "
    "v3plus_table1 v3plus_table2 v3plus_table3 v3plus_table5 v3plus_test v3plus_fig5 "
    "v3plus_table4 v3plus_table7"
).split()
ROWS = [row for name in TABLES for row in plan.table(name).ROWS]


def table() -> str:
    lines = [
        "| table | row | mean IoU, % | `python -m deeplab_jax.main ...` | waits for |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        needs = ", ".join(row.needs)
        label = row.label.replace("|", "/")
        lines.append(f"| {row.table} | {label} | {row.published} | `{row.arguments()}` | {needs} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
