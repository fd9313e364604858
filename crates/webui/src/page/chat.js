// A model to talk to: the recipe that loads it, and the page of `sft serve`, which runs as a process of its own. What it says is
// shown as a page of another origin, and stays while other views are looked at.
import { ask, make, repeat } from './page.js';
import { say } from './words.js';

const FIRST = 'model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct\ntemplate: auto\nfinetuning_type: lora\n# adapter_name_or_path: saves/run-1\n';

/** Keeps a recipe, so that the view shows it. */
export const keep = text => localStorage.setItem('sft.chat', text);

// The model whose page is there.
let there = null;

/** The view. */
export function show(main) {
  const talk = document.getElementById('talk');
  const area = make('textarea', { className: 'text', rows: 8, spellcheck: false, value: localStorage.getItem('sft.chat') ?? FIRST, 'aria-label': say('Recipe'), oninput: () => keep(area.value) });
  const wrong = make('pre', { className: 'wrong', role: 'alert' });
  const state = make('span', { className: 'grow quiet', role: 'status' });
  const load = make('button', { className: 'main', onclick: begin }, say('Load'));
  const unload = make('button', { onclick: end, hidden: true }, say('Unload'));
  const recipe = make('details', { open: there === null }, make('summary', {}, say('Recipe')), area);
  const output = make('pre', { className: 'output', hidden: true });
  main.replaceChildren(make('section', { className: 'card' }, make('div', { className: 'row' }, state, load, unload), recipe, wrong, output));
  let id = null;

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

  const leave = repeat(async hasLeft => {
    const told = await ask('chat');
    if (hasLeft()) return;
    id = told.id;
    const isRunning = told.state === 'ready' || told.state === 'loading';
    // One that is slow for a moment is still there.
    const isThere = told.state === 'ready' || (isRunning && there === told.id);
    unload.hidden = !isRunning;
    const words = isThere ? told.model : isRunning ? `${say('Loading')} ${told.model} …` : say('No model is loaded.');
    if (state.textContent !== words) state.textContent = words;
    output.hidden = isThere || told.state === 'none';
    if (output.textContent !== (told.output ?? '')) output.textContent = told.output ?? '';
    if (isThere && there !== told.id) {
      there = told.id;
      recipe.open = false;
      const frame = make('iframe', { src: told.path, title: say('Chat') });
      frame.sandbox = 'allow-scripts allow-forms';
      talk.replaceChildren(frame);
    }
    if (!isThere && there !== null) {
      there = null;
      talk.replaceChildren();
    }
    talk.hidden = !isThere;
  }, 1000);
  return () => {
    leave();
    talk.hidden = true;
  };
}
