// The form of a recipe: a field for every key. It shows what the text gives, and tells what is changed.
import { make } from './page.js';
import { say } from './words.js';

const CHOSEN = ['dataset', 'eval_dataset'];

/** A form for `keys`, with the essential ones first; `change(name, value)` hears of what is changed, null of what is left out. */
export function makeForm({ keys, essentials }, change) {
  const fields = new Map();
  let given = {}, suggested = {};

  function makeField(key) {
    const id = `key-${key.name}`, about = `about-${key.name}`;
    const shared = { id, 'aria-describedby': about, onchange: event => change(key.name, event.target.value.trim() || null) };
    const usual = `${say('default')}: ${key.default}`;
    let input;
    if (key.kind === 'switch' || key.kind === 'choice') {
      const choices = key.kind === 'switch' ? ['true', 'false'] : key.choices.filter(choice => choice !== null);
      input = make('select', shared, make('option', { value: '' }, usual), choices.map(choice => make('option', { value: choice }, choice)));
    } else {
      input = make('input', { ...shared, placeholder: usual, spellcheck: false, autocomplete: 'off', list: `list-${key.name}`, inputMode: key.kind === 'number' ? 'decimal' : 'text' });
    }
    const names = CHOSEN.includes(key.name) ? make('div', { className: 'choices' }) : null;
    const root = make('div', { className: names ? 'field wide' : 'field' }, make('label', { for: id }, key.name), input, names,
      make('span', { className: 'doc', id: about }, key.doc.replaceAll('`', '')));
    fields.set(key.name, { root, input, names, key });
    return root;
  }

  const byName = new Map(keys.map(key => [key.name, key]));
  const first = essentials.map(({ about, keys: names }) => make('section', { className: 'card' }, make('h3', {}, say(about)),
    make('div', { className: 'fields' }, names.map(name => makeField(byName.get(name))))));
  const groups = new Map();
  for (const key of keys.filter(key => !fields.has(key.name))) {
    groups.set(key.group, [...(groups.get(key.group) ?? []), makeField(key)]);
  }
  const others = [...groups].map(([group, roots]) => make('details', {}, make('summary', {}, `${group} (${roots.length})`), make('div', { className: 'fields' }, roots)));
  const find = make('input', { type: 'search', placeholder: say('Find a key, by name or meaning'), 'aria-label': say('Find a key, by name or meaning'), className: 'grow', oninput: () => {
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
  const lists = make('div', { hidden: true });
  const root = make('div', {}, lists, make('div', { className: 'row card' }, find), first,
    make('section', { className: 'card' }, make('h3', {}, say('All other keys')), others));

  // Names with commas between, or a list of those that have some.
  const listed = text => (text.startsWith('[') ? JSON.parse(text) : text.split(',').map(part => part.trim()).filter(Boolean));
  const written = names => (names.some(name => name.includes(',')) ? JSON.stringify(names) : names.join(', ')) || null;

  function mark(name) {
    const { names } = fields.get(name);
    let chosen = [];
    try {
      chosen = listed(given[name] ?? '');
    } catch {
      // A list that is being written.
    }
    const all = suggested[name] ?? [];
    if (names.children.length !== all.length || all.some((one, i) => names.children[i].textContent !== one)) {
      names.replaceChildren(...all.map(one => make('button', { type: 'button', onclick: () => {
        const now = listed(given[name] ?? '');
        change(name, written(now.includes(one) ? now.filter(other => other !== one) : [...now, one]));
      } }, one)));
    }
    [...names.children].forEach(button => button.setAttribute('aria-pressed', String(chosen.includes(button.textContent))));
  }

  /** Shows what a text gives. */
  function fill(now) {
    given = now;
    for (const [name, { root, input }] of fields) {
      const value = given[name] ?? '';
      root.classList.toggle('given', name in given);
      if (document.activeElement === input && input.tagName === 'INPUT') continue;
      // A choice in other words than the list has.
      if (input.tagName === 'SELECT' && ![...input.options].some(option => option.value === value)) {
        input.append(make('option', { value }, value));
      }
      input.value = value;
    }
    CHOSEN.forEach(mark);
  }

  /** Names that can be put in, by their keys. */
  function suggest(told) {
    suggested = told;
    lists.replaceChildren(...Object.entries(told).map(([name, names]) =>
      make('datalist', { id: `list-${name}` }, names.map(one => make('option', { value: one })))));
    CHOSEN.forEach(mark);
  }
  return { root, fill, suggest };
}
