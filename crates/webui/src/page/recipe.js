// A recipe: a form beside its text, which is what is run. What is wrong with it is told while it is written.
import { makeForm } from './form.js';
import { makeLooks } from './look.js';
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
const STARTS = { train: 'Start training', predict: 'Start answering', export: 'Start merging' };

// Each tab has its own; a new one begins with the last.
const kept = name => sessionStorage.getItem(name) ?? localStorage.getItem(name);
const store = (name, value) => [sessionStorage, localStorage].forEach(place => place.setItem(name, value));

/** Keeps a recipe for its view, which can take back that it replaces another one. */
export function keep(text, command) {
  sessionStorage.setItem('sft.before', kept('sft.recipe') ?? '');
  store('sft.recipe', text);
  store('sft.command', command);
}

// One request after the other, each with the text as it is then: nothing that is typed or chosen meanwhile is lost, also where
// the view is left and shown again.
let last = Promise.resolve();

/** The view. */
export function show(main) {
  const area = make('textarea', { className: 'text', spellcheck: false, 'aria-label': say('Recipe'), value: kept('sft.recipe') ?? FIRST, oninput: typed });
  const problems = make('ul', { className: 'problems', 'aria-live': 'polite' });
  const which = make('select', { 'aria-label': say('Command'), onchange: () => draft() },
    Object.keys(STARTS).map(name => make('option', { value: name, selected: name === kept('sft.command') }, say(`sft ${name}`))));
  const start = make('button', { className: 'main', disabled: true, onclick: begin }, say(STARTS[which.value]));
  const waits = make('input', { type: 'checkbox', id: 'waits' });
  const looks = makeLooks(settled);
  const path = make('input', { className: 'grow', placeholder: 'recipes/first.yaml', value: kept('sft.path') ?? '', list: 'list-recipes', 'aria-label': say('File') });
  const undo = make('button', { disabled: true, onclick: back, title: say('Take the last change of the form, Open or New back') }, say('Undo'));
  const side = make('div', { className: 'side' });
  const redo = make('button', { disabled: true, onclick: forth }, say('Redo'));
  let form = null, given = {}, timer = 0, suggestedFor = null, beginning = false;
  // Texts that were replaced by something else than typing: a browser's own undo ends at those.
  const replaced = [], takenBack = [];

  function typed() {
    store('sft.recipe', area.value);
    clearTimeout(timer);
    timer = setTimeout(draft, 250);
  }

  function put(text) {
    area.value = text;
    store('sft.recipe', text);
    undo.disabled = replaced.length === 0;
    redo.disabled = takenBack.length === 0;
  }

  function replace(by) {
    if (area.value === by) return;
    replaced.push(area.value);
    takenBack.length = 0;
    put(by);
  }

  function back() {
    takenBack.push(area.value);
    put(replaced.pop());
    draft();
  }

  function forth() {
    replaced.push(area.value);
    put(takenBack.pop());
    draft();
  }

  function draft(set = null) {
    last = last.then(() => send(set));
    return last;
  }

  // The server reads the text, and changes a key in it if asked for: it knows YAML and the keys.
  async function send(set) {
    for (;;) {
      const sent = area.value, command = which.value;
      store('sft.command', command);
      let told;
      try {
        told = await ask('recipe', { method: 'POST', body: { text: sent, command, set } });
      } catch (error) {
        problems.replaceChildren(make('li', {}, error.message));
        start.disabled = true;
        // It is tried again until the view is left.
        if (!error.isLost || !area.isConnected) return;
        await new Promise(done => setTimeout(done, 1500));
        continue;
      }
      // Typed meanwhile: the change is made in the newer text.
      if (area.value !== sent && set) continue;
      if (area.value !== sent) return;
      replace(told.text);
      given = told.given;
      tell(told, command);
      form?.fill(given);
      suggest();
      return;
    }
  }

  function tell(told, command) {
    const jump = line => line && make('a', { href: '#recipe', onclick: event => { event.preventDefault(); select(line); } }, `${say('line')} ${line}: `);
    problems.replaceChildren(
      ...told.problems.map(problem => make('li', {}, jump(problem.line), problem.reason, problem.help && make('small', {}, problem.help))),
      ...told.notes.map(note => make('li', { className: 'note' }, jump(note.line), `${note.key} ${say('has no effect')}`, make('small', {}, note.reason))));
    start.disabled = beginning || told.problems.length > 0;
    start.textContent = say(STARTS[command]);
  }

  function select(line) {
    const lines = area.value.split('\n'), begin = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
    area.focus();
    area.setSelectionRange(begin, begin + (lines[line - 1] ?? '').length);
    area.scrollTop = (line - 5) * parseFloat(getComputedStyle(area).lineHeight);
  }

  async function suggest() {
    const wanted = given.dataset_dir ?? '';
    if (!form || suggestedFor === wanted) return;
    suggestedFor = wanted;
    const told = await ask(`suggestions?dataset_dir=${encodeURIComponent(wanted)}`).catch(() => { suggestedFor = null; });
    if (told) form.suggest(told);
  }

  // What was changed a moment ago is part of it.
  async function settled() {
    clearTimeout(timer);
    await draft();
    return area.value;
  }

  const refused = error => problems.replaceChildren(make('li', {}, make('pre', {}, error.message)));

  async function begin() {
    start.disabled = beginning = true;
    try {
      const text = await settled();
      const told = await ask('runs', { method: 'POST', body: { command: which.value, text, waits: waits.checked } });
      if (area.isConnected) go(`#runs/${told.name}`);
    } catch (error) {
      refused(error);
      start.disabled = false;
    }
    beginning = false;
  }

  async function open() {
    try {
      replace((await ask(`file?path=${encodeURIComponent(path.value)}`)).text);
      store('sft.path', path.value);
      await draft();
    } catch (error) {
      refused(error);
    }
  }

  async function save(replaces = false) {
    try {
      await ask('file', { method: 'PUT', body: { path: path.value, text: await settled(), replace: replaces } });
      store('sft.path', path.value);
      looks.show(make('p', { className: 'quiet' }, `${say('Saved')}: ${path.value}`));
      suggestedFor = null;
      suggest();
    } catch (error) {
      if (error.status !== 409 || replaces) return refused(error);
      if (confirm(`${path.value}: ${say('there is such a file. Replace it?')}`)) await save(true);
    }
  }

  side.append(
    make('section', { className: 'card' },
      make('div', { className: 'row' }, path, make('button', { onclick: open }, say('Open')), make('button', { onclick: () => save() }, say('Save')),
        make('button', { onclick: () => { replace(FIRST); draft(); } }, say('New')), undo, redo),
      make('p', { className: 'row' }, which), area, problems,
      make('p', { className: 'row' }, looks.buttons),
      make('div', { className: 'row' }, start, make('label', { className: 'small', for: 'waits' }, waits, ` ${say('wait until nothing else is at work')}`))),
    looks.root);
  const place = make('div', {}, make('p', { className: 'quiet' }, '…'));
  main.replaceChildren(make('div', { className: 'recipe' }, place, side));
  const before = sessionStorage.getItem('sft.before');
  sessionStorage.removeItem('sft.before');
  if (before && before !== area.value) {
    replaced.push(before);
    undo.disabled = false;
  }
  ask(`form?language=${language()}`).then(told => {
    form = makeForm(told, (name, value) => draft([name, value]));
    place.replaceChildren(form.root);
    form.fill(given);
    suggest();
  }).catch(error => place.replaceChildren(make('p', { className: 'wrong' }, error.message)));
  const shown = area.value;
  last = last.then(() => {
    if (area.value === shown) area.value = kept('sft.recipe') ?? shown;
  });
  draft();
  return () => {
    clearTimeout(timer);
    looks.end();
  };
}
