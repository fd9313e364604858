// What a recipe would do: the words of short commands, and rows with what is trained of them.
import { ask, make } from './page.js';
import { say } from './words.js';

const LOOKS = { plan: 'Data, steps, memory', rows: 'What is trained of the rows', check: 'Check the data', fit: 'What fits' };
const ROWS = 5;

/** Buttons to look, and the place where it is shown; `settled` gives the text as it is when all changes are in it. */
export function makeLooks(settled) {
  const root = make('section', { className: 'card', hidden: true, 'aria-live': 'polite' });
  let looking = null;

  function show(...children) {
    root.hidden = false;
    root.replaceChildren(...children);
  }

  async function look(what, from = 0) {
    looking?.abort();
    const control = looking = new AbortController(), title = say(LOOKS[what]);
    show(make('p', { className: 'row' }, make('span', { className: 'quiet grow' }, `${title} …`), make('button', { onclick: () => control.abort() }, say('Cancel'))));
    try {
      const told = await ask('look', { method: 'POST', body: { what, text: await settled(), from }, signal: control.signal });
      const errors = told.errors.trim() && make('pre', { className: told.done ? 'quiet' : 'wrong' }, told.errors.trim());
      show(make('h3', {}, title), ...(told.rows ? examples(told.rows, from) : [make('pre', {}, told.said)]), errors || '');
    } catch (error) {
      if (looking !== control) return;
      const isCancelled = error.name === 'AbortError';
      show(make('p', { className: isCancelled ? 'quiet' : 'wrong' }, isCancelled ? say('Cancelled') : error.message));
    }
  }

  function examples(rows, from) {
    const turn = (label, to, isThere) => make('button', { onclick: () => look('rows', to), disabled: !isThere }, label);
    return [...rows.map(example), make('div', { className: 'row' }, turn('←', from - ROWS, from > 0), turn('→', from + ROWS, rows.length === ROWS),
      make('span', { className: 'small quiet' }, say('Green is trained; above each part stands why, or why not.')))];
  }

  const buttons = Object.entries(LOOKS).map(([what, label]) => make('button', { onclick: () => look(what) }, say(label)));
  return { root, buttons, show, end: () => looking?.abort() };
}

function example({ dataset, row, place, tokens, spans }) {
  const trained = spans.filter(span => span.trained).reduce((sum, span) => sum + span.tokens, 0);
  const parts = spans.map(span => make('p', { className: span.trained ? 'trained' : '' },
    make('small', {}, `${span.trained ? '+' : '−'} ${span.reason} (${span.tokens}${span.weight === 1 ? '' : ` × ${span.weight}`})`), span.text));
  return make('div', { className: 'example' }, make('div', { className: 'small' }, `${dataset} ${row} · ${place} · ${tokens} ${say('tokens')}, ${trained} ${say('trained')}`), parts);
}
