import csv
import io
import re

import pytest

from rsdiff.evaluation.tables import Shown, csv_text, latex, latex_text, markdown

COLUMNS = Shown('name', lambda row: row[0], number=False), Shown('gain & loss', lambda row: row[1])
ROWS = [('a|b\nc', '+1.2 ± 0.4'), ('50%_{x}', '-3.0')]


def test_markdown_keeps_a_cell_a_cell_and_a_row_a_row():
    lines = markdown(COLUMNS, ROWS).splitlines()
    assert lines[1] == '|---|---:|' and len(lines) == 4
    assert [len(re.split(r'(?<!\\)\|', line)) for line in lines] == [4] * 4
    assert lines[2] == r'| a\|b c | +1.2 ± 0.4 |'


def test_latex_is_a_booktabs_table_with_nothing_left_to_command_it():
    text = latex(COLUMNS, ROWS, 'gains_of 100 %', 'tab:x')
    assert text.count(r'\toprule') == text.count(r'\midrule') == text.count(r'\bottomrule') == 1
    assert r'\begin{tabular}{lr}' in text and r'\caption{gains\_of 100 \%}' in text and r'\label{tab:x}' in text
    body = text.split(r'\toprule')[1].split(r'\bottomrule')[0].replace(r'\midrule', '')
    lines = [line for line in body.splitlines() if line]
    assert [len(re.findall(r'(?<!\\)&', line)) for line in lines] == [1] * 3 and all(
        line.endswith(r'\\') for line in lines
    )
    assert lines[2] == r'50\%\_\{x\} & $-$3.0 \\' and lines[1] == r'a|b c & +1.2 $\pm$ 0.4 \\'


@pytest.mark.parametrize(
    'text, printed',
    [
        ('real-time 1:2', 'real-time 1:2'),
        ('-0.4 to +2', '$-$0.4 to +2'),
        ('(-0.4', '($-$0.4'),
        ('2020-01', '2020-01'),
        ('p <0.001', 'p $<$0.001'),
        ('\\input{x}', r'\textbackslash{}input\{x\}'),
        ('a~b^c#$', r'a\textasciitilde{}b\textasciicircum{}c\#\$'),
    ],
)
def test_latex_text_prints_what_is_there(text, printed):
    assert latex_text(text) == printed


def test_csv_gives_back_what_it_was_given():
    rows = [{'name': 'a,"b"\nc', 'value': 0.1}, {'name': '', 'value': None}]
    assert list(csv.DictReader(io.StringIO(csv_text(rows)))) == [
        {'name': 'a,"b"\nc', 'value': '0.1'},
        {'name': '', 'value': ''},
    ]
