// A recipe: a form beside its text, which is what is run. What is wrong with it is told while it is written.
import { ask, go, make } from './page.js';
import { language, say } from './words.js';

const FIRST = `# What is trained
model_name_or_path: Qwen/Qwen2.5-0.5B
template: auto
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
bf16: true

# On what
dataset_dir: data
dataset: alpaca_en_demo
cutoff_len: 2048
packing: true

# How
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1

# What it leaves
output_dir: saves/run-1
logging_steps: 5
save_steps: 100
plot_loss: true
`;
const COMMANDS = ['train', 'predict', 'export'];

/** Keeps a recipe, so that its view shows it. */
export function keep(text, command) {
  localStorage.setItem(command === 'chat' ? 'sft.chat' : 'sft.recipe', text);
  if (command !== 'chat') localStorage.setItem('sft.command', command);
}

/** The view. */
export function show(main) {
  let text = localStorage.getItem('sft.recipe') ?? FIRST;
  let command = localStorage.getItem('sft.command') ?? 'train';
  if (!COMMANDS.includes(command)) command = 'train';
  let given = {}, suggested = {}, turn = 0, timer = 0, looking = null, folder = null;
  const fields = new Map();

  const area = make('textarea', { className: 'text', value: text, spellcheck: false, 'aria-label': say('Recipe'), oninput: () => {
    text = area.value;
    clearTimeout(timer);
    timer = setTimeout(draft, 250);
  } });
  const problems = make('ul', { className: 'problems' });
  const start = make('button', { className: 'main', onclick: begin });
  const waits = make('input', { type: 'checkbox', id: 'waits' });
  const result = make('section', { className: 'card', hidden: true, 'aria-live': 'polite' });
  const path = make('input', { className: 'grow', placeholder: 'recipes/first.yaml', value: localStorage.getItem('sft.path') ?? '', list: 'recipes', 'aria-label': say('File') });
  const form = make('div', {}, make('p', { className: 'quiet' }, '…'));
  const lists = make('div', { hidden: true });
  const which = make('select', { 'aria-label': say('Command'), onchange: () => { command = which.value; draft(); } },
    COMMANDS.map(name => make('option', { value: name, selected: name === command }, say(`sft ${name}`))));

  // The server reads the text, and changes a key in it if asked for: it knows YAML and the keys.
  async function draft(set) {
    keep(text, command);
    const mine = ++turn;
    let told;
    try {
      told = await ask('recipe', { method: 'POST', body: { text, command, set: set ?? null } });
    } catch (error) {
      problems.replaceChildren(make('li', {}, error.message));
      return;
    }
    // Something newer is on its way.
    if (mine !== turn) return;
    if (told.text !== text) {
      area.value = text = told.text;
      keep(text, command);
    }
    given = told.given;
    tell(told);
    fill();
    suggest();
  }

  function tell(told) {
    const jump = line => line && make('a', { href: '#recipe', onclick: event => { event.preventDefault(); select(line); } }, `${say('line')} ${line}: `);
    problems.replaceChildren(
      ...told.problems.map(problem => make('li', {}, jump(problem.line), problem.reason, problem.help && make('small', {}, problem.help))),
      ...told.notes.map(note => make('li', { className: 'note' }, jump(note.line), `${note.key} ${say('has no effect')}`, make('small', {}, note.reason))));
    start.disabled = told.problems.length > 0;
    start.textContent = say({ train: 'Start training', predict: 'Start answering', export: 'Start merging' }[command]);
  }

  function select(line) {
    const lines = text.split('\n'), begin = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    area.focus();
    area.setSelectionRange(begin, begin + (lines[line - 1] ?? '').length);
    area.scrollTop = (line - 5) * parseFloat(getComputedStyle(area).lineHeight);
  }

  function fill() {
    for (const [name, field] of fields) {
      const value = given[name] ?? '';
      field.root.classList.toggle('given', name in given);
      if (document.activeElement === field.input) continue;
      // A choice in other words than the list has.
      if (field.input.tagName === 'SELECT' && ![...field.input.options].some(option => option.value === value)) {
        field.input.append(make('option', { value }, value));
      }
      field.input.value = value;
    }
    for (const name of ['dataset', 'eval_dataset']) mark(name);
  }

  const change = (name, value) => draft([name, value === '' ? null : value]);

  function field(key) {
    const id = `key-${key.name}`;
    const shared = { id, onchange: event => change(key.name, event.target.value.trim()) };
    const usual = `${say('default')}: ${key.default}`;
    let input;
    if (key.kind === 'switch' || key.kind === 'choice') {
      const choices = key.kind === 'switch' ? ['true', 'false'] : key.choices.filter(choice => choice !== null);
      input = make('select', shared, make('option', { value: '' }, usual), choices.map(choice => make('option', { value: choice }, choice)));
    } else {
      input = make('input', { ...shared, placeholder: usual, spellcheck: false, autocomplete: 'off', list: `list-${key.name}`, inputMode: key.kind === 'number' ? 'decimal' : 'text' });
    }
    const names = key.name === 'dataset' || key.name === 'eval_dataset' ? make('div', { className: 'choices' }) : null;
    const root = make('div', { className: names ? 'field wide' : 'field' }, make('label', { for: id }, key.name), input, names, make('span', { className: 'doc' }, key.doc.replaceAll('`', '')));
    fields.set(key.name, { root, input, names, key });
    return root;
  }

  // Data sets that are chosen by a click.
  function mark(name) {
    const field = fields.get(name);
    if (!field) return;
    const chosen = (given[name] ?? '').split(',').map(part => part.trim()).filter(Boolean);
    field.names.replaceChildren(...(suggested[name] ?? []).map(one => make('button', {
      type: 'button', 'aria-pressed': String(chosen.includes(one)),
      onclick: () => change(name, (chosen.includes(one) ? chosen.filter(other => other !== one) : [...chosen, one]).join(', ')),
    }, one)));
  }

  async function suggest() {
    const wanted = given.dataset_dir ?? '';
    if (folder === wanted) return;
    folder = wanted;
    const told = await ask(`suggestions?dataset_dir=${encodeURIComponent(wanted)}`).catch(() => null);
    if (!told) return;
    suggested = told;
    const list = (id, names) => make('datalist', { id }, names.map(name => make('option', { value: name })));
    lists.replaceChildren(list('recipes', told.recipes),
      ...Object.entries(told).filter(([name]) => name !== 'recipes').map(([name, names]) => list(`list-${name}`, names)));
    fill();
  }

  async function build() {
    const told = await ask(`form?language=${language()}`);
    const keys = new Map(told.keys.map(key => [key.name, key]));
    const groups = new Map();
    const first = told.essentials.map(({ about, keys: names }) => make('section', { className: 'card' }, make('h3', {}, say(about)),
      make('div', { className: 'fields' }, names.map(name => field(keys.get(name))))));
    for (const key of told.keys) {
      if (fields.has(key.name)) continue;
      if (!groups.has(key.group)) groups.set(key.group, []);
      groups.get(key.group).push(field(key));
    }
    const others = [...groups].map(([group, roots]) => make('details', {}, make('summary', {}, `${group} (${roots.length})`), make('div', { className: 'fields' }, roots)));
    const find = make('input', { type: 'search', placeholder: say('Find a key, by name or meaning'), className: 'grow', oninput: () => {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const { root, key } of fields.values()) {
        const about = `${key.name} ${key.doc}`.toLowerCase();
        root.hidden = !words.every(word => about.includes(word));
      }
      for (const box of [...first, ...others]) {
        box.hidden = ![...box.querySelectorAll('.field')].some(root => !root.hidden);
        if (box.tagName === 'DETAILS') box.open = words.length > 0;
      }
    } });
    form.replaceChildren(make('div', { className: 'row card' }, find), ...first, make('section', { className: 'card' }, make('h3', {}, say('All other keys')), others));
    fill();
  }

  async function look(what, from = 0) {
    looking?.abort();
    const control = looking = new AbortController();
    const cancel = make('button', { onclick: () => control.abort() }, say('Cancel'));
    result.hidden = false;
    const title = say(looks.find(([name]) => name === what)[1]);
    result.replaceChildren(make('p', { className: 'row' }, make('span', { className: 'quiet grow' }, `${title} …`), cancel));
    try {
      const told = await ask('look', { method: 'POST', body: { what, text, from }, signal: control.signal });
      const errors = told.errors.trim() && make('pre', { className: told.done ? 'quiet' : 'wrong' }, told.errors.trim());
      result.replaceChildren(make('h3', {}, title), ...(what === 'rows' ? examples(told.said, from) : [make('pre', {}, told.said)]), errors || '');
    } catch (error) {
      if (looking !== control) return;
      result.replaceChildren(make('p', { className: error.name === 'AbortError' ? 'quiet' : 'wrong' }, error.name === 'AbortError' ? say('Cancelled') : error.message));
    }
  }

  function examples(said, from) {
    const rows = said.split('\n').filter(Boolean).map(line => JSON.parse(line));
    const shown = rows.map(row => {
      const trained = row.spans.filter(span => span.trained).reduce((sum, span) => sum + span.tokens, 0);
      const spans = row.spans.map(span => {
        const weight = span.weight === 1 ? '' : `, × ${span.weight}`;
        return make('span', { className: span.trained ? 'trained' : 'quiet', title: `${span.reason} (${span.tokens}${weight})` }, span.text);
      });
      return make('div', { className: 'example' }, make('div', { className: 'small' }, `${row.dataset} ${row.row} · ${row.place} · ${row.input_ids.length} ${say('tokens')}, ${trained} ${say('trained')}`), make('p', {}, spans));
    });
    const turn = (label, to) => make('button', { onclick: () => look('rows', to), disabled: to < 0 || (to > from && rows.length === 0) }, label);
    return [...shown, make('div', { className: 'row' }, turn('←', from - 5), turn('→', from + 5), make('span', { className: 'small quiet' }, say('Green is trained. Point at a text for why, or why not.')))];
  }

  async function begin() {
    start.disabled = true;
    try {
      const told = await ask('runs', { method: 'POST', body: { command, text, waits: waits.checked } });
      go(`#runs/${told.name}`);
    } catch (error) {
      problems.replaceChildren(make('li', {}, make('pre', {}, error.message)));
      start.disabled = false;
    }
  }

  async function open() {
    try {
      text = area.value = (await ask(`file?path=${encodeURIComponent(path.value)}`)).text;
      localStorage.setItem('sft.path', path.value);
      await draft();
    } catch (error) {
      problems.replaceChildren(make('li', {}, error.message));
    }
  }

  async function save(replace = false) {
    try {
      await ask('file', { method: 'PUT', body: { path: path.value, text, replace } });
      localStorage.setItem('sft.path', path.value);
      result.hidden = false;
      result.replaceChildren(make('p', { className: 'quiet' }, `${say('Saved')}: ${path.value}`));
      folder = null;
      suggest();
    } catch (error) {
      if (error.status === 409 && !replace) {
        if (confirm(`${path.value}: ${say('there is such a file. Replace it?')}`)) await save(true);
        return;
      }
      problems.replaceChildren(make('li', {}, error.message));
    }
  }

  const looks = [['plan', 'Data, steps, memory'], ['rows', 'What is trained of the rows'], ['check', 'Check the data'], ['fit', 'What fits']];
  main.replaceChildren(lists, make('div', { className: 'recipe' }, form, make('div', { className: 'side' },
    make('section', { className: 'card' },
      make('div', { className: 'row' }, path, make('button', { onclick: open }, say('Open')), make('button', { onclick: () => save() }, say('Save')),
        make('button', { onclick: () => { text = area.value = FIRST; draft(); } }, say('New'))),
      make('p', { className: 'row' }, which),
      area, problems,
      make('p', { className: 'row' }, looks.map(([what, label]) => make('button', { onclick: () => look(what) }, say(label)))),
      make('div', { className: 'row' }, start, make('label', { className: 'small', for: 'waits' }, waits, ` ${say('wait until nothing else is at work')}`))),
    result)));
  build().catch(error => form.replaceChildren(make('p', { className: 'wrong' }, error.message)));
  draft();
  return () => {
    clearTimeout(timer);
    looking?.abort();
    turn += 1;
  };
}
