// The frame of the page: which view is shown, requests with the key, and how elements are made.
import { language, say, setLanguage } from './words.js';
import * as recipe from './recipe.js';
import * as runs from './runs.js';
import * as chat from './chat.js';

/** An element; of attributes `on…` are listeners, and what is no attribute is a property. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name.startsWith('aria-') || ['for', 'list', 'role'].includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const at = id => document.getElementById(id);
const key = () => localStorage.getItem('sft.key') ?? '';

/** What the server answers; throws what it refuses, in words. */
export async function ask(path, { method = 'GET', body, signal } = {}) {
  let answer;
  try {
    answer = await fetch(`api/${path}`, {
      method, signal,
      headers: { Authorization: `Bearer ${key()}` },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    lost(say('The server cannot be reached. Runs go on without it.'));
    throw Object.assign(new Error(say('The server cannot be reached. Runs go on without it.')), { isLost: true });
  }
  lost('');
  const text = await answer.text();
  let told;
  try {
    told = JSON.parse(text);
  } catch {
    told = { error: text };
  }
  if (answer.ok) return told;
  const error = new Error(told.error || `${answer.status} ${answer.statusText}`);
  error.status = answer.status;
  if (answer.status === 401) askForKey(error.message);
  throw error;
}

function lost(text) {
  if (at('lost').textContent !== text) at('lost').textContent = text;
}

function askForKey(why) {
  leave();
  leave = () => {};
  const input = make('input', { type: 'password', autocomplete: 'off', 'aria-label': say('Key') });
  const take = event => {
    event.preventDefault();
    localStorage.setItem('sft.key', input.value.trim().replace(/^.*#key=/, ''));
    show();
  };
  at('main').replaceChildren(make('form', { className: 'card', onsubmit: take },
    make('p', {}, why), make('div', { className: 'row' }, input, make('button', { className: 'main' }, say('Open')))));
}

/** Calls `work` now and then again, while the view is shown and the page can be seen; at once if it says there is more. It is
 * given what says whether the view has been left meanwhile. */
export function repeat(work, every) {
  let timer = 0, ended = false;
  const round = async () => {
    let more = false;
    try {
      if (!document.hidden) more = await work(() => ended);
    } catch (error) {
      if (!ended) lost(error.message);
    }
    if (!ended) timer = setTimeout(round, more === true ? 0 : every);
  };
  round();
  return () => {
    ended = true;
    clearTimeout(timer);
  };
}

/** Goes to a view. */
export const go = place => { location.hash = place; };

// What the view that is shown does while it is shown.
let leave = () => {};

const machine = main => {
  const said = make('pre', {}, '…');
  main.replaceChildren(make('section', { className: 'card' }, make('h2', {}, say('What this machine has')), said));
  ask('look', { method: 'POST', body: { what: 'machine' } })
    .then(told => { said.textContent = told.said + told.errors; })
    .catch(error => { said.textContent = error.message; });
};

const views = new Map(Object.entries({ recipe: recipe.show, runs: runs.show, compare: runs.compare, chat: chat.show, machine }));

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show() {
  leave();
  const given = location.hash.match(/^#key=(.*)$/);
  if (given) {
    localStorage.setItem('sft.key', given[1]);
    // The key does not stay where others could read it.
    history.replaceState(null, '', '#recipe');
  }
  const [view, ...rest] = location.hash.slice(1).split('/');
  const shown = views.has(view) ? view : 'recipe';
  document.documentElement.lang = language() === 'zh' ? 'zh-CN' : 'en';
  for (const link of document.querySelectorAll('nav a')) {
    link.textContent = say(link.dataset.say);
    const name = link.getAttribute('href').slice(1);
    if (name === shown || (name === 'runs' && shown === 'compare')) {
      link.setAttribute('aria-current', 'page');
      document.title = `sft · ${link.textContent}`;
    } else {
      link.removeAttribute('aria-current');
    }
  }
  at('language').textContent = language() === 'zh' ? 'English' : '中文';
  leave = views.get(shown)(at('main'), rest.map(decoded)) ?? (() => {});
}

at('language').addEventListener('click', () => {
  setLanguage(language() === 'zh' ? 'en' : 'zh');
  show();
});
window.addEventListener('hashchange', () => {
  show();
  at('main').focus({ preventScroll: true });
});
// The key was given in another tab.
window.addEventListener('storage', event => {
  if (event.key === 'sft.key') show();
});
show();
