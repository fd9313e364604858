// A model to talk to: the recipe that loads it, and the page of `sft serve`, which runs as a process of its own.
import { ask, make, repeat } from './page.js';
import { keep } from './train.js';
import { say } from './words.js';

const FIRST = 'model_name_or_path: \ntemplate: auto\nfinetuning_type: lora\n# adapter_name_or_path: saves/run-1\n';

/** The view. */
export function show(main) {
  const area = make('textarea', { className: 'text', rows: 8, spellcheck: false, value: localStorage.getItem('sft.chat') ?? FIRST, 'aria-label': say('Recipe'), oninput: () => keep(area.value, 'chat') });
  const wrong = make('pre', { className: 'wrong' });
  const state = make('span', { className: 'grow quiet' });
  const load = make('button', { className: 'main', onclick: begin }, say('Load'));
  const unload = make('button', { onclick: end }, say('Unload'));
  const recipe = make('details', { open: true }, make('summary', {}, say('Recipe')), area);
  const output = make('pre', { className: 'output', hidden: true });
  const talk = make('div');
  main.replaceChildren(make('div', { className: 'chat' },
    make('section', { className: 'card' }, make('div', { className: 'row' }, state, load, unload), recipe, wrong, output), talk));
  let path = null, id = null;

  async function begin() {
    wrong.textContent = '';
    load.disabled = true;
    try {
      await ask('runs', { method: 'POST', body: { command: 'chat', text: area.value } });
    } catch (error) {
      wrong.textContent = error.message;
    }
    load.disabled = false;
  }

  async function end() {
    if (id) await ask(`runs/${id}/stop`, { method: 'POST', body: { now: true } }).catch(error => { wrong.textContent = error.message; });
  }

  return repeat(async () => {
    const told = await ask('chat');
    id = told.id;
    const isThere = told.state === 'ready', isLoading = told.state === 'loading';
    unload.hidden = !isThere && !isLoading;
    state.textContent = isThere ? told.model : isLoading ? `${say('Loading')} ${told.model} …` : say('No model is loaded.');
    output.hidden = isThere || told.state === 'none';
    output.textContent = told.output ?? '';
    if (isThere && path !== told.path) {
      path = told.path;
      recipe.open = false;
      talk.replaceChildren(make('iframe', { src: path, title: say('Chat') }));
    }
    if (!isThere && path) {
      path = null;
      talk.replaceChildren();
    }
  }, 1000);
}
